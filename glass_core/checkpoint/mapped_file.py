"""Read-only memory maps of checkpoint files."""

import mmap
from pathlib import Path

from glass_core.errors import CheckpointError


def map_file(path: Path) -> memoryview:
    """The file's bytes, mapped; the mapping ends with the last reference to it or to an array made from it.

    Raises CheckpointError when the file cannot be read or is empty.
    """
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # mmap's answer to an empty file
        raise CheckpointError(f"{path}: truncated: the file is empty") from error
