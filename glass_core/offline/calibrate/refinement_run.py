"""The refinement part of a calibration run: local errors, shares of the layers, thresholds at every sparsity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from glass_core.offline.calibrate.allocation import LayerShares, LocalErrors, allocate
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.local_errors import LayerTokens, layer_errors, trace_tokens
from glass_core.offline.calibrate.refinement import SPARSITIES, make_table, measure_thresholds, score_weights
from glass_core.offline.calibrate.sensitivity import better_half
from glass_core.offline.calibrate.statistics import Float32Array
from glass_core.offline.calibrate.workfolder import WorkFolder
from glass_core.offline.progress import Progress
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import NeuronIndices
from glass_core.sparsity.refinement import ScoreWeights
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
        weights = score_weights(self.model, neurons["gate_rms"], neurons["gate_slope_rms"], neurons["down_norm"])
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
        return make_table(sparsities, points, weights)

    def _local_errors(self, weights: ScoreWeights, activation: Float32Array) -> LocalErrors:
        tokens = cache(lambda: trace_tokens(self.model, self.corpus))
        scores = StageTensors.of_weights(weights, self.model.device)
        errors = []
        with self.progress.task("measuring local errors", len(activation)) as advance:
            for layer, neurons in enumerate(better_half(activation)):
                make = partial(self._layer_errors, layer, tokens, scores.of_layer(layer), neurons)
                errors.append(self.work.numbers(f"errors-{layer:04d}", make))
                advance()
        of_inputs, of_columns = zip(*errors, strict=True)
        return LocalErrors(np.array(of_inputs), np.array(of_columns))

    def _layer_errors(
        self, layer: int, tokens: Callable[[], list[LayerTokens]], scores: StageTensors, static: NeuronIndices
    ) -> list[Any]:
        """Of inputs and of down columns, as lists."""
        weights, activation = self.model.layers[layer].ffn, self.model.spec.activation
        return [errors.tolist() for errors in layer_errors(weights, activation, tokens()[layer], scores, static)]
