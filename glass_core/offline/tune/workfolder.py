"""Partial results of a tuning run: its texts, the table that it starts from, and its state."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from glass_core.offline.partial_results import PartialResults, write_whole
from glass_core.offline.tune.domains import TuningText
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from glass_core.sparsity.refinement_table import RefinementTable

_STATE = "state"


class TuningFolder(PartialResults):
    """The texts and the run's state, keyed by all settings, the model and the artifact."""

    def __init__(self, key: str) -> None:
        super().__init__(f"tune-{key}")

    def texts(self, make: Callable[[], list[TuningText]]) -> list[TuningText]:
        """The texts, drawn once."""
        stored = self.json("texts", lambda: [[text.domain, text.prompt, text.answer] for text in make()])
        return [TuningText(name, tuple(prompt), tuple(answer)) for name, prompt, answer in stored]

    def table(self, make: Callable[[], RefinementTable]) -> RefinementTable:
        """The table that the search starts from, measured once."""
        path = self.path / "start.safetensors"
        if not path.is_file():
            write_whole(path, safetensors.numpy.save(_tensors(make())))
        return _table(safetensors.numpy.load(path.read_bytes()))

    def load(self) -> dict[str, Any] | None:
        """The state stored last; None before the first."""
        path = self.path / f"{_STATE}.json"
        return json.loads(path.read_bytes()) if path.is_file() else None

    def store(self, state: dict[str, Any]) -> None:
        self.store_json(_STATE, state)


def _tensors(table: RefinementTable) -> dict[str, npt.NDArray[np.float32]]:
    weights = {stage: getattr(table.weights, stage) for stage in STAGES}
    return {"sparsities": table.sparsities, "thresholds": table.thresholds, **weights}


def _table(tensors: dict[str, npt.NDArray[np.float32]]) -> RefinementTable:
    weights = ScoreWeights(*(tensors[stage] for stage in STAGES))
    return RefinementTable(tensors["sparsities"], tensors["thresholds"], weights)
