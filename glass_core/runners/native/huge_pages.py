"""Weight images in 2-MB pages of the page cache, where the kernel and the file system have them.

A gathered list of neurons touches nearly every page of a layer for a part of its bytes: with 4-KB pages it waits for
page-table walks. Linux fills the page cache in 2-MB pieces when a mapping that asks for them is read and the file is
not cached yet. A file that was just written, or that lost pages while memory was short and was read again bit by bit,
sits there in small pages and has to be dropped first.
"""

import mmap
import os
import re
from pathlib import Path
from typing import BinaryIO

_HUGE_PAGE = 2 << 20
_HUGE_BYTES = re.compile(r"^FilePmdMapped:\s+(\d+) kB$", re.MULTILINE)
_ENOUGH = 0.9


def keep_in_huge_pages(path: Path) -> None:
    """Have most of a file in 2-MB pages of the page cache. What another process has mapped of it stays as it is; where
    there are no such pages only the file's first 2 MB are read again."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE") or _huge_bytes(file, size) >= _ENOUGH * size:
            return
        os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
        for length in (_HUGE_PAGE, size):
            os.posix_fadvise(file.fileno(), 0, length, os.POSIX_FADV_DONTNEED)
            if _huge_bytes(file, length) == 0:
                return


def huge_page_bytes(path: Path) -> int:
    """How many bytes of a file a new mapping finds in 2-MB pages; 0 where the system does not say."""
    with path.open("rb") as file:
        return _huge_bytes(file, path.stat().st_size)


def _huge_bytes(file: BinaryIO, length: int) -> int:
    """Of the file's first bytes, after what is not cached has been read in 2-MB pages."""
    smaps, advice = Path("/proc/self/smaps"), getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or not smaps.is_file():
        return 0
    with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as content:
        try:
            content.madvise(advice)
        except OSError:
            return 0  # a kernel built without huge pages
        for position in range(0, length, _HUGE_PAGE):
            content[position]
        described = smaps.read_text(encoding="utf-8", errors="replace").partition(f" {Path(file.name).resolve()}\n")[2]
    found = _HUGE_BYTES.search(described)
    return 0 if found is None else 1024 * int(found[1])
