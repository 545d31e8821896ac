"""What the cascade costs a layer by itself: the squared norm of the part of its output that is lost.

Measured on dense activations of a few decoded tokens, at every point of the allocation's grids, in units of the error
of the static half, which is what the layer's sensitivity was measured with. Skipped inputs and skipped down columns are
measured one without the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glass_core.models.spec import Activation
from glass_core.offline.calibrate.allocation import DOWN_SHARES, INPUT_SHARES, FloatArray
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.instrumented import TracingFfn, final_states
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.ffn import ffn_activation
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.weights import FfnWeights
from glass_core.sparsity.plan import NeuronIndices

NUM_TOKENS = 192


@dataclass(frozen=True, slots=True)
class LayerTokens:
    """What one layer's FFN computes densely at some tokens: its input x (n, hidden_size) and z (n, m)."""

    x: Tensor
    z: Tensor


@torch.no_grad()
def trace_tokens(model: TorchModel, sequences: Sequence[CorpusSequence]) -> list[LayerTokens]:
    """Every layer's activations at `NUM_TOKENS` decoded tokens (or all there are), spread evenly over the sequences."""
    parts: list[list[LayerTokens]] = []
    per_sequence = -(-NUM_TOKENS // len(sequences))
    for sequence in sequences:
        ffn = TracingFfn(model)
        final_states(model, torch.tensor(sequence.token_ids, device=model.device), ffn)
        last = len(sequence.token_ids) - 1
        chosen = np.unique(np.linspace(sequence.first_decoded, last, per_sequence).round().astype(np.int64))
        rows = torch.from_numpy(chosen).to(model.device)
        parts.append([LayerTokens(trace.x[rows], trace.z[rows]) for trace in ffn.traces])
    return [_joined(layer) for layer in zip(*parts, strict=True)]


@torch.no_grad()
def layer_errors(
    weights: FfnWeights, activation: Activation, tokens: LayerTokens, scores: StageTensors, static: NeuronIndices
) -> tuple[FloatArray, FloatArray]:
    """Errors at the grids' points, (len(INPUT_SHARES),) and (len(DOWN_SHARES),), relative to keeping the `static`
    neurons. `scores`: this layer's weights of scores."""
    pruned = tokens.z.clone()
    pruned[:, torch.tensor(static).long()] = 0.0
    unit = _mean_square(pruned, weights.down_proj)
    errors = _input_errors(weights, activation, tokens, scores), _down_errors(weights, tokens, scores)
    # a layer whose static half loses nothing has no unit, and nothing to lose
    return (errors[0] / unit, errors[1] / unit) if unit > 0 else errors


def _input_errors(weights: FfnWeights, activation: Activation, tokens: LayerTokens, scores: StageTensors) -> FloatArray:
    values = tokens.x.abs() * scores.inputs
    kept = [torch.where(values >= threshold, tokens.x, 0.0) for threshold in share_thresholds(values, INPUT_SHARES)]
    return np.array([_mean_square(tokens.z - ffn_activation(weights, activation, x), weights.down_proj) for x in kept])


def _down_errors(weights: FfnWeights, tokens: LayerTokens, scores: StageTensors) -> FloatArray:
    values = tokens.z.abs() * scores.down
    lost = [torch.where(values >= threshold, 0.0, tokens.z) for threshold in share_thresholds(values, DOWN_SHARES)]
    return np.array([_mean_square(z, weights.down_proj) for z in lost])


def share_thresholds(scores: Tensor, shares: Sequence[float]) -> list[float]:
    """For each share the threshold that round(share * n) of all the n `scores` reach; 0 keeps all.

    One partition serves all shares: of millions of scores it is what takes the time.
    """
    values = scores.flatten().cpu().numpy()
    num_pruned = [values.size - round(share * values.size) for share in shares]
    wanted = sorted({count for count in num_pruned if 0 < count < values.size})
    parted = np.partition(values, wanted) if wanted else values
    return [float(parted[count]) if 0 < count < values.size else 0.0 for count in num_pruned]


def _mean_square(z: Tensor, down_proj: Tensor) -> float:
    return float((z @ down_proj).square().sum(dim=-1).mean())


def _joined(parts: Sequence[LayerTokens]) -> LayerTokens:
    return LayerTokens(torch.cat([part.x for part in parts]), torch.cat([part.z for part in parts]))
