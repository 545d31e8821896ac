"""Thresholds of token-level refinement, as quantiles of the scores that a text brings about.

For each sparsity the text passes through the model once, layer by layer, and each layer is pruned before the next one
sees its output: thresholds fit what the layers below leave, not the dense model's activations. Pruned are the tokens
that a server would decode, never the prompt (here: a chat's template and question) and never position 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glass_core.offline.calibrate.allocation import LayerShares
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.local_errors import ScoreWeights, share_thresholds
from glass_core.offline.calibrate.statistics import Float32Array
from glass_core.runners.torch_runner.attention import JoinedCaches, SequenceCache
from glass_core.runners.torch_runner.ffn import gate_and_up
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.refinement_table import RefinementTable

SPARSITIES = tuple(step / 100 for step in range(10, 61, 5))


def score_weights(gate_rms: Float32Array, down_norm: Float32Array) -> ScoreWeights:
    """The weights a server takes from the artifact: RMS of act(g) times the norm of down, and that norm."""
    return ScoreWeights(torch.from_numpy(gate_rms * down_norm), torch.from_numpy(down_norm))


@torch.no_grad()
def measure_thresholds(
    model: TorchModel, sequences: Sequence[CorpusSequence], weights: ScoreWeights, shares: LayerShares
) -> list[list[float]]:
    """[up, down] thresholds of the layers, under which the decoded tokens of all sequences together keep the shares."""
    token_ids = torch.tensor([token for sequence in sequences for token in sequence.token_ids], device=model.device)
    positions = [torch.arange(len(sequence.token_ids), device=model.device) for sequence in sequences]
    lengths = torch.cat([torch.full_like(part, len(part)) for part in positions])
    ffn = _FittingFfn(model, _decoded(sequences).to(model.device), weights, shares)
    own_lengths = [len(sequence.token_ids) for sequence in sequences]
    attention = JoinedCaches([SequenceCache(model.spec) for _ in sequences], own_lengths)
    model.forward(token_ids, torch.cat(positions), attention=attention, ffn=ffn, rope_lengths=lengths)
    return [ffn.up_thresholds, ffn.down_thresholds]


def make_table(sparsities: Sequence[float], points: Sequence[Sequence[Sequence[float]]]) -> RefinementTable:
    """The table of [up, down] thresholds measured at these sparsities, ascending."""
    up, down = np.array(points, np.float32).swapaxes(0, 1)
    return RefinementTable(np.array(sparsities, np.float32), np.ascontiguousarray(up), np.ascontiguousarray(down))


def _decoded(sequences: Sequence[CorpusSequence]) -> Tensor:
    """Whether each token of all sequences is pruned, (n,) bool."""
    return torch.cat([torch.arange(len(item.token_ids)) >= item.first_decoded for item in sequences])


class _FittingFfn:
    """An `Ffn` that sets each layer's thresholds by the scores it sees, then prunes by them."""

    def __init__(self, model: TorchModel, pruned: Tensor, weights: ScoreWeights, shares: LayerShares) -> None:
        self._model, self._pruned, self._weights, self._shares = model, pruned, weights, shares
        self.up_thresholds: list[float] = []
        self.down_thresholds: list[float] = []

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        gate, up = gate_and_up(self._model.layers[layer].ffn, self._model.spec.activation, x)
        z = gate * up
        z[self._pruned] = self._prune(layer, up[self._pruned], z[self._pruned])
        return self._model.ffn_output(layer, z)

    def _prune(self, layer: int, up: Tensor, z: Tensor) -> Tensor:
        up_scores = up.abs() * self._weights.up[layer]
        (up_threshold,) = share_thresholds(up_scores, [float(self._shares.up[layer])])
        gated = up_scores >= up_threshold
        down_scores = torch.where(gated, z.abs() * self._weights.down[layer], 0.0)
        (down_threshold,) = share_thresholds(down_scores, [float(self._shares.down[layer])])
        self.up_thresholds.append(up_threshold)
        self.down_thresholds.append(down_threshold)
        return torch.where(gated & (down_scores >= down_threshold), z, 0.0)
