"""The static half of a tuning run: from texts to a decision about lambdas and budgets of their own.

Learned and decided on with the method `a_glass` alone; under a tuned profile `i_glass` fuses by the same lambdas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glass_core.offline.progress import Progress
from glass_core.offline.tune.domains import DOMAINS, TuningText, TuningTexts
from glass_core.offline.tune.held_out import HeldOut, decision_to_json_object, is_better
from glass_core.offline.tune.offsets import FloatArray
from glass_core.offline.tune.settings import TuningSettings
from glass_core.offline.tune.static_descent import StaticSearch, StaticState, static_kl
from glass_core.offline.tune.static_objectives import StaticBatch, read_statically
from glass_core.offline.tune.static_profile import parameters_of, profile_of
from glass_core.offline.tune.workfolder import TuningFolder
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import SENSITIVITY, TUNED, Profile
from glass_core.sparsity.ranking import ranks


@dataclass(frozen=True, slots=True, eq=False)
class StaticOutcome:
    """What a search found: the state it ended in, and how `sensitivity` and the best profile did on the deciding
    text."""

    state: StaticState
    num_batches: int
    measured: Profile
    default: HeldOut
    tuned: HeldOut

    @property
    def wins(self) -> bool:
        return self.state.best is not None and is_better(self.tuned, self.default)

    @property
    def profile(self) -> Profile:
        """`tuned`: learned where that wins, else pruning as `sensitivity` does."""
        if self.wins and self.state.best is not None:
            return profile_of(self.state.best)
        return Profile(TUNED, self.measured.prune_weights, self.measured.lambdas)

    def to_json_object(self, settings: TuningSettings) -> dict[str, Any]:
        """Learning curves and the decision, for a result file. `learning_kl`: means over passes through the text."""
        passes = _passes(np.array(self.state.losses), self.num_batches)
        best = self.measured if self.state.best is None else profile_of(self.state.best)
        return {
            "domains": [domain.name for domain in DOMAINS],
            "sparsities": list(settings.sparsities),
            "learning_steps": [(start + len(part) / 2.0) for start, part in passes],
            "learning_kl": [part.mean(axis=0).tolist() for _, part in passes],
            "stopping": [
                {"num_steps": item.num_steps, "kl": _means(item.kl), "mean_log_improvement": item.improvement}
                for item in self.state.evaluations
            ],
            "best_num_steps": self.state.num_best_steps,
            "prune_weights": best.prune_weights,
            "lambdas": best.lambdas,
            "deciding": decision_to_json_object(self.tuned, self.default, tuned_wins=self.wins),
        }


@dataclass(frozen=True, slots=True)
class StaticRun:
    """A loaded model, its measured statistics, and how to tune."""

    model: TorchModel
    statistics: GlobalStatistics
    settings: TuningSettings
    progress: Progress

    def execute(self, texts: TuningTexts, folder: TuningFolder) -> StaticOutcome:
        """Everything that is not yet done."""
        measured = self.statistics.profiles[SENSITIVITY]
        count = self.settings.text.num_learning
        # texts come domain after domain, equally many of each
        learning = [self._batch(texts.learning[first::count]) for first in range(count)]
        search = StaticSearch(learning, self._batches(texts.stopping), self.settings)
        state = search.run(parameters_of(measured), folder, self.progress)
        return self._decide(state, count, measured, self._batches(texts.deciding))

    def _decide(
        self, state: StaticState, num_batches: int, measured: Profile, batches: Sequence[StaticBatch]
    ) -> StaticOutcome:
        default = static_kl(batches, measured, self.settings.sparsities)
        tuned = default
        if state.best is not None:
            tuned = static_kl(batches, profile_of(state.best), self.settings.sparsities)
        return StaticOutcome(state, num_batches, measured, default, tuned)

    def _batches(self, texts: Sequence[TuningText]) -> list[StaticBatch]:
        """As many texts at a time as there are domains: the dense predictions of all would not fit into memory."""
        size = len(DOMAINS)
        return [self._batch(texts[start : start + size]) for start in range(0, len(texts), size)]

    def _batch(self, texts: Sequence[TuningText]) -> StaticBatch:
        model_ranks = ranks(self.statistics.activation_l1)
        return StaticBatch(self.model, [read_statically(self.model, text, model_ranks) for text in texts])


def _passes(losses: FloatArray, num_batches: int) -> list[tuple[int, FloatArray]]:
    """The steps (n, num_sparsities, num_domains) of every whole pass through the text, and how many came before.

    Steps of different texts do not compare: a search that ended within its first pass has that part alone.
    """
    last = max(len(losses) - num_batches, 0)
    return [(start, losses[start : start + num_batches]) for start in range(0, last + 1, num_batches)]


def _means(kl: list[list[float]]) -> list[float]:
    means: list[float] = np.mean(kl, axis=1).tolist()
    return means
