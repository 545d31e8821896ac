"""What the cascade costs a layer by itself: the squared norm of the part of its output that is lost.

Measured on dense activations of a few decoded tokens, at every point of the allocation's grids, in units of the error
of the static half, which is what the layer's sensitivity was measured with. Skipped inputs and skipped neurons are
measured one without the other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glass_core.offline.calibrate.allocation import DOWN_RATIOS, INPUT_SHARES, UP_SHARES, FloatArray
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.instrumented import LayerTrace, TracingFfn, final_states
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.weights import LayerWeights
from glass_core.sparsity.plan import NeuronIndices

NUM_TOKENS = 192


@torch.no_grad()
def trace_tokens(model: TorchModel, sequences: Sequence[CorpusSequence]) -> list[LayerTrace]:
    """Every layer's activations at `NUM_TOKENS` decoded tokens (or all there are), spread evenly over the sequences."""
    parts: list[list[LayerTrace]] = []
    per_sequence = -(-NUM_TOKENS // len(sequences))
    for sequence in sequences:
        ffn = TracingFfn(model)
        final_states(model, torch.tensor(sequence.token_ids, device=model.device), ffn)
        last = len(sequence.token_ids) - 1
        chosen = np.unique(np.linspace(sequence.first_decoded, last, per_sequence).round().astype(np.int64))
        rows = torch.from_numpy(chosen).to(model.device)
        parts.append(
            [LayerTrace(trace.x[rows], trace.gate[rows], trace.up[rows], trace.z[rows]) for trace in ffn.traces]
        )
    return [_joined(layer) for layer in zip(*parts, strict=True)]


@torch.no_grad()
def layer_errors(
    layer: LayerWeights, trace: LayerTrace, scores: StageTensors, static: NeuronIndices
) -> tuple[FloatArray, FloatArray]:
    """Errors at the grids' points, (len(INPUT_SHARES),) and (len(UP_SHARES), len(DOWN_RATIOS)), relative to keeping
    the `static` neurons. `scores`: this layer's weights of scores."""
    pruned = trace.z.clone()
    pruned[:, torch.tensor(static).long()] = 0.0
    unit = _mean_square(pruned, layer.down_proj)
    errors = _input_errors(layer, trace, scores), _neuron_errors(layer, trace, scores)
    # a layer whose static half loses nothing has no unit, and nothing to lose
    return (errors[0] / unit, errors[1] / unit) if unit > 0 else errors


def _input_errors(layer: LayerWeights, trace: LayerTrace, scores: StageTensors) -> FloatArray:
    values = trace.x.abs() * scores.inputs
    skipped = [torch.where(values >= threshold, 0.0, trace.x) for threshold in share_thresholds(values, INPUT_SHARES)]
    return np.array([_mean_square(trace.gate * (x @ layer.up_proj.T), layer.down_proj) for x in skipped])


def _neuron_errors(layer: LayerWeights, trace: LayerTrace, scores: StageTensors) -> FloatArray:
    up_scores, down_scores = trace.up.abs() * scores.up, trace.z.abs() * scores.down
    errors = np.empty((len(UP_SHARES), len(DOWN_RATIOS)))
    for i, (up_share, up_threshold) in enumerate(zip(UP_SHARES, share_thresholds(up_scores, UP_SHARES), strict=True)):
        gated = up_scores >= up_threshold
        values = torch.where(gated, down_scores, 0.0)
        for j, threshold in enumerate(share_thresholds(values, [up_share * ratio for ratio in DOWN_RATIOS])):
            kept = gated & (values >= threshold)
            errors[i, j] = _mean_square(torch.where(kept, 0.0, trace.z), layer.down_proj)
    return errors


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


def _joined(traces: Sequence[LayerTrace]) -> LayerTrace:
    return LayerTrace(
        torch.cat([trace.x for trace in traces]),
        torch.cat([trace.gate for trace in traces]),
        torch.cat([trace.up for trace in traces]),
        torch.cat([trace.z for trace in traces]),
    )
