"""Partial results of a tuning run: its texts and its state."""

import json
from collections.abc import Callable
from typing import Any

from glass_core.offline.partial_results import PartialResults
from glass_core.offline.tune.domains import TuningText

_STATE = "state"


class TuningFolder(PartialResults):
    """The texts and the run's state, keyed by all settings, the model and the artifact."""

    def __init__(self, key: str) -> None:
        super().__init__(f"tune-{key}")

    def texts(self, make: Callable[[], list[TuningText]]) -> list[TuningText]:
        """The texts, drawn once."""
        stored = self.json("texts", lambda: [[text.domain, text.prompt, text.answer] for text in make()])
        return [TuningText(name, tuple(prompt), tuple(answer)) for name, prompt, answer in stored]

    def load(self) -> dict[str, Any] | None:
        """The state stored last; None before the first."""
        path = self.path / f"{_STATE}.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def store(self, state: dict[str, Any]) -> None:
        self.store_json(_STATE, state)
