"""Partial results of a long run on disk, so that a killed run continues where it was.

Every file is written to a temporary name and renamed, so what exists is whole. Values are stored exactly: a resumed run
gives the same bits as an uninterrupted one.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glass_core.config import glass_home


class PartialResults:
    """A folder of one run's parts. `name` holds all that the parts depend on, hashed: equal names, equal parts."""

    def __init__(self, name: str) -> None:
        self.path = glass_home() / "work" / name
        self.path.mkdir(parents=True, exist_ok=True)

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that JSON holds exactly, made when it is not there yet; as JSON gives it back: lists for tuples."""
        path = self.path / f"{name}.json"
        if not path.is_file():
            self.store_json(name, make())
        return json.loads(path.read_bytes())

    def store_json(self, name: str, value: Any) -> None:
        """Put a value there, in place of the one before."""
        write_whole(self.path / f"{name}.json", json.dumps(value).encode())

    def remove(self) -> None:
        """Drop everything: the run is over."""
        shutil.rmtree(self.path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is whole as soon as it exists."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
