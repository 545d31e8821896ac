"""Thresholds of token-level refinement, as quantiles of the scores that a text brings about.

For each sparsity the text passes through the model once, layer by layer and stage by stage: each stage sees what the
one before left (gate and up of the kept inputs), each layer what the layers below left, so that thresholds fit the
pruned model's scores, not the dense one's. Pruned are the tokens that a server would decode, never the prompt (here: a
chat's template and question) and never position 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glass_core.offline.calibrate.allocation import LayerShares
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.local_errors import share_thresholds
from glass_core.offline.calibrate.statistics import Float32Array
from glass_core.runners.torch_runner.attention import JoinedCaches, SequenceCache
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.ffn import ffn_activation
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.weights import LayerWeights
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.stored_tensor import as_stored

SPARSITIES = tuple(step / 100 for step in range(10, 71, 5))


def score_weights(
    model: TorchModel, gate_rms: Float32Array, gate_slope_rms: Float32Array, down_norm: Float32Array
) -> ScoreWeights:
    """The default weights, as an artifact stores them: norms of what the layer's output loses with x_i and z_j, where
    the rest is only known by its root-mean-square. `gate_rms`, `gate_slope_rms`, `down_norm` (num_layers, m)."""
    gains = zip(model.layers, gate_rms * down_norm, gate_slope_rms * down_norm, strict=True)
    inputs = [input_weights(layer, up_gains, gate_gains) for layer, up_gains, gate_gains in gains]
    return ScoreWeights(*(as_stored(values) for values in (np.stack(inputs), down_norm)))


def input_weights(layer: LayerWeights, up_gains: Float32Array, gate_gains: Float32Array) -> Float32Array:
    """Of one layer's inputs, (hidden_size,): sqrt(sum_j (up_proj[j, i] * up_gains[j])^2 + (gate_proj[j, i] *
    gate_gains[j])^2) per weight of an input's two columns, 2m, where neurons' scores are per hidden_size weights.

    `up_gains`, `gate_gains` (m,): what the output changes by with a neuron's u, and with its gate's input.
    """
    num_neurons, hidden_size = layer.up_proj.shape
    squares = _square_columns(layer.up_proj, up_gains) + _square_columns(layer.gate_proj, gate_gains)
    weights: Float32Array = (squares * hidden_size / (2 * num_neurons)).sqrt().float().cpu().numpy()
    return weights


def _square_columns(matrix: Tensor, gains: Float32Array) -> Tensor:
    """Squared norms of the columns, (k,) float64, of a `matrix` (m, k) whose rows are scaled by `gains` (m,)."""
    return (matrix.float() * torch.from_numpy(gains).to(matrix.device)[:, None]).double().square().sum(dim=0)


@torch.no_grad()
def measure_thresholds(
    model: TorchModel, sequences: Sequence[CorpusSequence], weights: ScoreWeights, shares: LayerShares
) -> list[list[float]]:
    """Thresholds [stage][layer], under which the decoded tokens of all sequences together keep the shares."""
    token_ids = torch.tensor([token for sequence in sequences for token in sequence.token_ids], device=model.device)
    positions = [torch.arange(len(sequence.token_ids), device=model.device) for sequence in sequences]
    lengths = torch.cat([torch.full_like(part, len(part)) for part in positions])
    ffn = _FittingFfn(model, _decoded(sequences).to(model.device), weights, shares)
    own_lengths = [len(sequence.token_ids) for sequence in sequences]
    attention = JoinedCaches([SequenceCache(model.spec) for _ in sequences], own_lengths)
    model.forward(token_ids, torch.cat(positions), attention=attention, ffn=ffn, rope_lengths=lengths)
    return ffn.thresholds


def make_table(
    sparsities: Sequence[float], points: Sequence[Sequence[Sequence[float]]], weights: ScoreWeights
) -> RefinementTable:
    """The table of thresholds [stage][layer] measured at these sparsities, ascending, on scores with these weights."""
    return RefinementTable(np.array(sparsities, np.float32), np.array(points, np.float32), weights)


def _decoded(sequences: Sequence[CorpusSequence]) -> Tensor:
    """Whether each token of all sequences is pruned, (n,) bool."""
    return torch.cat([torch.arange(len(item.token_ids)) >= item.first_decoded for item in sequences])


class _FittingFfn:
    """An `Ffn` that sets each layer's `thresholds` by the scores it sees, then prunes by them."""

    def __init__(self, model: TorchModel, pruned: Tensor, weights: ScoreWeights, shares: LayerShares) -> None:
        self._model, self._pruned, self._shares = model, pruned, shares
        self._scores = StageTensors.of_weights(weights, model.device)
        self.thresholds: list[list[float]] = [[] for _ in STAGES]

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        z = x.new_empty(len(x), self._model.spec.intermediate_size)
        z[~self._pruned] = self._model.ffn_activation(layer, x[~self._pruned])
        z[self._pruned] = self._prune(layer, x[self._pruned])
        return self._model.ffn_output(layer, z)

    def _prune(self, layer: int, x: Tensor) -> Tensor:
        weights, scores = self._model.layers[layer].ffn, self._scores.of_layer(layer)
        inputs = self._fit(0, x.abs() * scores.inputs, self._shares.inputs[layer])
        z = ffn_activation(weights, self._model.spec.activation, torch.where(inputs, x, 0.0))
        return torch.where(self._fit(1, z.abs() * scores.down, self._shares.down[layer]), z, 0.0)

    def _fit(self, stage: int, scores: Tensor, share: float) -> Tensor:
        """Whether each score reaches the threshold that keeps this share."""
        (threshold,) = share_thresholds(scores, [float(share)])
        self.thresholds[stage].append(threshold)
        return scores >= threshold
