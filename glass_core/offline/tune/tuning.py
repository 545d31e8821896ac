"""A tuning run from text to table: write texts, measure what neurons count for, descend, decide on text that neither
learned nor stopped, make a table.

Refinement's scores and thresholds are learned here, static budgets and lambdas in `static_tuning`. Each half is kept
where it wins; the profile `tuned` has the measured one of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glass_core.config import EngineConfig
from glass_core.engine.runner_choice import NATIVE, choose_runner
from glass_core.errors import ConfigurationError
from glass_core.offline.calibrate.refinement import make_table
from glass_core.offline.generation import cache_for
from glass_core.offline.progress import Progress
from glass_core.offline.tune.descent import Descent, DescentState
from glass_core.offline.tune.domains import (
    DOMAINS,
    TuningText,
    TuningTexts,
    draw_texts,
    max_prompt_tokens,
    split_texts,
)
from glass_core.offline.tune.held_out import HeldOut, decision_to_json_object, evaluate, is_better
from glass_core.offline.tune.importance import measure_importance
from glass_core.offline.tune.objectives import TextBatch, read_densely
from glass_core.offline.tune.offsets import FloatArray, log_thresholds, no_offsets, place
from glass_core.offline.tune.search import Evaluation, Search, SearchState
from glass_core.offline.tune.settings import KERNEL_WIDTH, TuningSettings
from glass_core.offline.tune.static_tuning import StaticOutcome, StaticRun
from glass_core.offline.tune.workfolder import TuningFolder
from glass_core.runners.base import Runner
from glass_core.runners.native.checkpoint_image import open_or_make_image
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import SENSITIVITY, TUNED
from glass_core.sparsity.manifest import CorpusValue
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.text import TextProcessor


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a run found: the state it ended in, the table it started from, the best offsets to it, how the default
    table and the tuned one did on the deciding text, and what the static half found."""

    state: SearchState
    start: RefinementTable
    offsets: FloatArray
    default: HeldOut
    tuned: HeldOut
    static: StaticOutcome

    @property
    def wins(self) -> bool:
        """Whether either half does."""
        return self.refinement_wins or self.static.wins

    @property
    def refinement_wins(self) -> bool:
        return is_better(self.tuned, self.default)

    def to_json_object(self, settings: TuningSettings) -> dict[str, Any]:
        """Learning curves and the decision, for a result file."""
        return {
            "domains": [domain.name for domain in DOMAINS],
            "sparsities": list(settings.sparsities),
            "learning_kl": self.state.descent.losses,
            "stopping": [_curve_point(item) for item in self.state.evaluations],
            "best_num_steps": self.state.num_best_steps,
            "offsets": self.offsets.tolist(),
            "deciding": decision_to_json_object(self.tuned, self.default, tuned_wins=self.refinement_wins),
            "static": self.static.to_json_object(settings),
        }


@dataclass(frozen=True, slots=True)
class TuningRun:
    """A loaded model, its measured statistics, and what to tune."""

    model: TorchModel
    text: TextProcessor
    model_dir: Path
    statistics: GlobalStatistics
    settings: TuningSettings
    progress: Progress

    def execute(self, folder: TuningFolder) -> Outcome:
        """Everything that is not yet done. Raises ConfigurationError when the artifact has no table to start from."""
        default = self.default_table
        texts = split_texts(folder.texts(self._draw), self.settings.text)
        start, state = self._search(default, texts, folder)
        static = StaticRun(self.model, self.statistics, self.settings, self.progress).execute(texts, folder)
        return self._decide(state, start, self._batch(default.weights, texts.deciding), static)

    def _search(
        self, default: RefinementTable, texts: TuningTexts, folder: TuningFolder
    ) -> tuple[RefinementTable, SearchState]:
        """The table that refinement's search starts from, and the state it ends in."""
        start = folder.table(partial(self._start, default, texts))
        batches = [
            self._batch(start.weights, texts.learning[first :: self._per_domain]) for first in range(self._per_domain)
        ]
        search = Search(
            start,
            Descent(start, batches, self.settings),
            self._batch(start.weights, texts.stopping),
            self.settings,
        )
        return start, search.run(self._state(folder, len(batches)), folder, self.progress)

    def tuned_statistics(self, outcome: Outcome, folder: TuningFolder, command: str) -> GlobalStatistics:
        """The artifact's statistics with profile and table `tuned` added, or replaced; without an expected KL of it."""
        table = self._tuned_table(outcome, folder) if outcome.refinement_wins else self.default_table
        manifest = self.statistics.manifest
        noted: dict[str, CorpusValue] = {
            "tuning_command": command,
            "tuning_seed": self.settings.text.seed,
            "tuning_domains": len(DOMAINS),
        }
        return replace(
            self.statistics,
            manifest=replace(manifest, corpus=dict(manifest.corpus) | noted),
            profiles=dict(self.statistics.profiles) | {TUNED: outcome.static.profile},
            refinement=dict(self.statistics.refinement) | {TUNED: table},
            expected_kl={name: tables for name, tables in self.statistics.expected_kl.items() if name != TUNED},
        )

    @property
    def default_table(self) -> RefinementTable:
        """The table that calibration measured."""
        table = self.statistics.refinement.get(SENSITIVITY)
        if table is None:
            raise ConfigurationError("the artifact has no refinement thresholds to tune: run `glass calibrate` first")
        for sparsity in self.settings.sparsities:
            if not table.sparsities[0] <= np.float32(sparsity) <= table.sparsities[-1]:
                raise ConfigurationError(f"sparsities: the artifact has no thresholds for {sparsity}")
        return table

    @property
    def _per_domain(self) -> int:
        return self.settings.text.num_learning

    def _draw(self) -> list[TuningText]:
        return draw_texts(self._writing_runner(), self.text, self.model_dir, self.settings.text, self.progress)

    def _writing_runner(self) -> Runner:
        """Native where it can run, because it writes much faster; else the torch runner."""
        cache = cache_for(
            self.model.spec,
            num_sequences=self.settings.text.num_per_domain * len(DOMAINS),
            num_tokens=max_prompt_tokens(self.text, self.settings.text),
            bytes_per_value=self.model.dtype.itemsize,
        )
        config = choose_runner(EngineConfig(self.model_dir, self.model_dir.name, cache=cache)).config
        if config.runner == NATIVE:
            from glass_core.runners.native.runner import NativeRunner  # noqa: PLC0415  needs the compiled extension

            return NativeRunner(open_or_make_image(self.model_dir, config.dtype), cache)
        return TorchRunner(self.model, cache)

    def _batch(self, weights: ScoreWeights, texts: Sequence[TuningText]) -> TextBatch:
        return TextBatch(self.model, weights, [read_densely(self.model, text) for text in texts])

    def _state(self, folder: TuningFolder, num_batches: int) -> SearchState:
        stored = folder.load()
        if stored is not None:
            return SearchState.from_json_object(stored)
        num_layers, num_sparsities = self.model.spec.num_layers, len(self.settings.sparsities)
        return SearchState(DescentState.begin(num_layers, num_batches, num_sparsities, len(DOMAINS)))

    def _start(self, default: RefinementTable, texts: TuningTexts) -> RefinementTable:
        """Scores by importance, one threshold for all layers; its reads are right for the first learning texts."""
        importance = measure_importance(self.model, texts.learning, self.progress)
        shape = (len(default.sparsities), len(STAGES), default.num_layers)
        thresholds = np.full(shape, importance.typical_score, np.float32)
        rough = RefinementTable(default.sparsities, thresholds, importance.weights)
        batch = self._batch(rough.weights, texts.learning[:: self._per_domain])
        return self._table(rough, no_offsets(default.num_layers), batch)

    def _decide(self, state: SearchState, start: RefinementTable, batch: TextBatch, static: StaticOutcome) -> Outcome:
        nothing = no_offsets(self.model.spec.num_layers)
        offsets = nothing if state.best is None else state.best
        zeros = np.zeros((len(self.settings.sparsities), len(batch)))
        default = evaluate(self.default_table, nothing, batch, self.settings, zeros)
        weighted = batch.weighted(start.weights)
        tuned = evaluate(start, offsets, weighted, self.settings, zeros)
        return Outcome(state, start, offsets, default, tuned, static)

    def _tuned_table(self, outcome: Outcome, folder: TuningFolder) -> RefinementTable:
        texts = split_texts(folder.texts(self._draw), self.settings.text)
        batch = self._batch(outcome.start.weights, texts.stopping)
        return self._table(outcome.start, outcome.offsets, batch)

    def _table(self, start: RefinementTable, offsets: FloatArray, batch: TextBatch) -> RefinementTable:
        """Thresholds at all sparsities of a table, each scaled so that the text reads the rest on average."""
        sparsities = [round(float(value), 6) for value in start.sparsities]
        points = []
        shift = 0.0
        with self.progress.task("measuring thresholds", len(sparsities)) as advance:
            for sparsity in reversed(sparsities):
                logs = log_thresholds(start, offsets, sparsity, place(sparsity, self.settings.sparsities))
                shift = batch.common_shift(torch.from_numpy(logs), shift, 1.0 - sparsity, width=KERNEL_WIDTH)
                points.append(np.exp(logs + shift).tolist())
                advance()
        return make_table(sparsities, points[::-1], start.weights)


def _curve_point(item: Evaluation) -> dict[str, Any]:
    means = [float(np.mean(row)) for row in item.kl]
    return {"num_steps": item.num_steps, "kl": means, "mean_log_improvement": item.improvement}
