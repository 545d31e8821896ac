"""Partial results of a tuning run on disk, so that a killed run continues where it was, to the same bits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glass_core.config import glass_home
from glass_core.offline.tune.domains import TuningText


class TuningFolder:
    """The texts and the run's state. Every file is written to a temporary name and renamed: what exists is whole."""

    def __init__(self, key: str) -> None:
        self.path = glass_home() / "work" / f"tune-{key}"
        self.path.mkdir(parents=True, exist_ok=True)

    def texts(self, make: Callable[[], list[TuningText]]) -> list[TuningText]:
        """The texts, drawn once."""
        path = self.path / "texts.json"
        if not path.is_file():
            _write(path, [[text.domain, text.prompt, text.answer] for text in make()])
        return [TuningText(name, tuple(prompt), tuple(answer)) for name, prompt, answer in _read(path)]

    def load(self) -> dict[str, Any] | None:
        """The state stored last; None before the first."""
        path = self.path / "state.json"
        return _read(path) if path.is_file() else None

    def store(self, state: dict[str, Any]) -> None:
        _write(self.path / "state.json", state)

    def remove(self) -> None:
        """Drop everything: the run is over."""
        shutil.rmtree(self.path)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
