"""The descent with stopping: the stopping text is measured every few steps, the best offsets are kept."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from glass_core.offline.progress import Progress
from glass_core.offline.tune.descent import Descent, DescentState
from glass_core.offline.tune.held_out import HeldOut, evaluate, improvement
from glass_core.offline.tune.objectives import TextBatch
from glass_core.offline.tune.offsets import FloatArray
from glass_core.offline.tune.settings import TuningSettings
from glass_core.offline.tune.workfolder import TuningFolder
from glass_core.sparsity.refinement_table import RefinementTable


@dataclass(frozen=True, slots=True)
class Evaluation:
    """After `num_steps` steps: KL (num_sparsities, num_texts) on the stopping text, where its reads were equal, and
    its improvement over the first evaluation."""

    num_steps: int
    kl: list[list[float]]
    shifts: list[list[float]]
    improvement: float


@dataclass(slots=True)
class SearchState:
    """A search between two steps. `best`: the offsets of the best evaluation so far; none means the table as it is."""

    descent: DescentState
    evaluations: list[Evaluation] = field(default_factory=list)
    best: FloatArray | None = None

    @property
    def num_best_steps(self) -> int:
        """Steps after which the best evaluation was made."""
        return max(self.evaluations, key=lambda item: item.improvement).num_steps

    def to_json_object(self) -> dict[str, Any]:
        return {
            "descent": self.descent.to_json_object(),
            "evaluations": [[item.num_steps, item.kl, item.shifts, item.improvement] for item in self.evaluations],
            "best": None if self.best is None else self.best.tolist(),
        }

    @classmethod
    def from_json_object(cls, raw: dict[str, Any]) -> Self:
        best = None if raw["best"] is None else np.array(raw["best"])
        evaluations = [Evaluation(*item) for item in raw["evaluations"]]
        return cls(DescentState.from_json_object(raw["descent"]), evaluations, best)


@dataclass(frozen=True, slots=True)
class Search:
    """What a search runs on: the table it starts from, the descent over the learning text, the stopping text."""

    table: RefinementTable
    descent: Descent
    stopping: TextBatch
    settings: TuningSettings

    def run(self, state: SearchState, folder: TuningFolder, progress: Progress) -> SearchState:
        """From the given state to the end, stored after every step."""
        if not state.evaluations:
            self._evaluate(state)
        with progress.task("tuning", self.settings.num_steps) as advance:
            for _ in range(state.descent.num_steps):
                advance()
            while not self._is_over(state):
                self.descent.step(state.descent)
                if state.descent.num_steps % self.settings.evaluate_every == 0:
                    self._evaluate(state)
                folder.store(state.to_json_object())
                advance()
        return state

    def _is_over(self, state: SearchState) -> bool:
        waited = state.evaluations[-1].num_steps - state.num_best_steps
        return (
            state.descent.num_steps >= self.settings.num_steps
            or waited >= self.settings.patience * self.settings.evaluate_every
        )

    def _evaluate(self, state: SearchState) -> None:
        earlier = state.evaluations
        shape = (len(self.settings.sparsities), len(self.stopping))
        shifts = np.array(earlier[-1].shifts) if earlier else np.zeros(shape)
        found = evaluate(self.table, state.descent.offsets, self.stopping, self.settings, shifts)
        first = HeldOut(np.array(earlier[0].kl), found.num_tokens, shifts) if earlier else found
        gain = improvement(found, first)
        if earlier and gain > max(item.improvement for item in earlier):
            state.best = state.descent.offsets
        earlier.append(Evaluation(state.descent.num_steps, found.kl.tolist(), found.shifts.tolist(), gain))
