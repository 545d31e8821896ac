"""Weight images in 2-MB pages of the page cache, where the kernel and the file system have them.

A gathered list of neurons touches nearly every page of a layer for a part of its bytes: with 4-KB pages it waits for
page-table walks (a third slower than with 2-MB pages in a read-only test; lists in order do not care). Linux fills the
page cache in 2-MB pieces when a mapping that asks for them is read and the file is not cached yet. A file that was just
written, or read in another way, sits there in small pages and has to be dropped first.
"""

import mmap
import os
import re
from pathlib import Path

_HUGE_PAGE = 2 << 20
_HUGE_BYTES = re.compile(r"^FilePmdMapped:\s+(\d+) kB$", re.MULTILINE)


def read_in_huge_pages(path: Path) -> None:
    """Read a file into the page cache in 2-MB pages. What another process has mapped of it stays as it is; where there
    are no such pages the file is merely read again."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _touch(file.fileno(), advice)


def huge_page_bytes(path: Path) -> int:
    """How many bytes of a file a new mapping finds in 2-MB pages; 0 where the system does not say."""
    smaps = Path("/proc/self/smaps")
    if not smaps.is_file():
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for position in range(0, len(content), _HUGE_PAGE):
            content[position]
        described = smaps.read_text(encoding="utf-8", errors="replace").partition(f" {path.resolve()}\n")[2]
    found = _HUGE_BYTES.search(described)
    return 0 if found is None else 1024 * int(found[1])


def _touch(descriptor: int, advice: int) -> None:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        try:
            content.madvise(advice)
        except OSError:
            return  # a kernel built without huge pages
        for position in range(0, len(content), _HUGE_PAGE):
            content[position]
