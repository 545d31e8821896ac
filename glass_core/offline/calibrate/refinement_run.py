"""The refinement part of a calibration run: local errors, shares of the layers, thresholds at every sparsity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from glass_core.offline.calibrate.allocation import FloatArray, LayerShares, allocate
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.instrumented import LayerTrace
from glass_core.offline.calibrate.local_errors import ScoreWeights, layer_errors, trace_tokens
from glass_core.offline.calibrate.refinement import SPARSITIES, make_table, measure_thresholds, score_weights
from glass_core.offline.calibrate.sensitivity import better_half
from glass_core.offline.calibrate.statistics import Float32Array
from glass_core.offline.calibrate.workfolder import WorkFolder
from glass_core.offline.progress import Progress
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import NeuronIndices
from glass_core.sparsity.refinement_table import RefinementTable


@dataclass(frozen=True, slots=True)
class RefinementRun:
    """A loaded model and the sequences that thresholds are measured on."""

    model: TorchModel
    corpus: Sequence[CorpusSequence]
    work: WorkFolder
    progress: Progress

    def table(self, neurons: dict[str, Float32Array], sensitivity: Float32Array) -> RefinementTable:
        """Thresholds under shares allocated by predicted damage; `neurons` are the artifact's tensors."""
        weights = score_weights(neurons["gate_rms"], neurons["down_norm"])
        errors = self._local_errors(weights, neurons["activation_l1"])
        shares = [allocate(errors, sensitivity.astype(np.float64), 1.0 - sparsity) for sparsity in SPARSITIES]
        return self.measure(weights, SPARSITIES, shares, name="sensitivity")

    def measure(
        self, weights: ScoreWeights, sparsities: Sequence[float], shares: Sequence[LayerShares], *, name: str
    ) -> RefinementTable:
        """Thresholds that keep any given `shares`, one per sparsity; partial results are stored under `name`."""
        points = []
        with self.progress.task("measuring thresholds", len(shares)) as advance:
            for sparsity, share in zip(sparsities, shares, strict=True):
                make = partial(measure_thresholds, self.model, self.corpus, weights, share)
                points.append(self.work.numbers(f"thresholds-{name}-{sparsity:g}", make))
                advance()
        return make_table(sparsities, points)

    def _local_errors(self, weights: ScoreWeights, activation: Float32Array) -> FloatArray:
        traces = cache(lambda: trace_tokens(self.model, self.corpus))
        static = better_half(activation)
        errors = []
        with self.progress.task("measuring local errors", len(static)) as advance:
            for layer, neurons in enumerate(static):
                make = partial(self._layer_errors, layer, traces, weights, neurons)
                errors.append(self.work.numbers(f"errors-{layer:04d}", make))
                advance()
        return np.array(errors)

    def _layer_errors(
        self, layer: int, traces: Callable[[], list[LayerTrace]], weights: ScoreWeights, static: NeuronIndices
    ) -> list[list[float]]:
        errors: list[list[float]] = layer_errors(self.model, layer, traces()[layer], weights, static).tolist()
        return errors
