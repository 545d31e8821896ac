"""What neurons and inputs count for in the cascade's scores, measured instead of read off their weights.

A neuron's output: the root-mean-square of the loss's derivative with respect to it. The answers are the model's own,
drawn at temperature 1, so the mean square over their tokens is the diagonal of the Fisher information: to second order,
leaving out z_j costs z_j^2 E[(dl/dz_j)^2] / 2 of KL (the criterion of arXiv 1801.05787). Unlike the norm of a neuron's
down column it is in one unit for all layers.

Its gate: with v = z^2 E[(dl/dz)^2] and one price for a read, down is worth reading where v exceeds the price, and the
gate where what is then won, E over gates of max(v - price, 0), exceeds it as well. Of that the gate's distribution
decides at which |u|: `gate_worth`.

An input of up_proj: the root-mean-square of the loss's derivative with respect to it, through up_proj alone, per weight
of its column. So one threshold for all layers and stages shares the reads out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glass_core.offline.calibrate.instrumented import TracingFfn, final_states
from glass_core.offline.calibrate.statistics import next_token_loss
from glass_core.offline.progress import Progress
from glass_core.offline.tune.domains import TuningText
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.refinement import ScoreWeights
from glass_core.sparsity.stored_tensor import as_stored

Floats = npt.NDArray[np.float64]

_SMALLEST_SHARE = 1e-4
# of the tokens, how many gates are kept: their distribution needs fewer than the squares of derivatives
_GATE_STRIDE = 3
_NUM_BISECTIONS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """Weights as an artifact stores them, and the median over neurons of RMS(z) * weights.down, where a search for
    thresholds may begin."""

    weights: ScoreWeights
    typical_score: float


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Of one text's decoded tokens: sums of (dl/dx)^2 through up_proj, (num_layers, hidden_size) float64, of (dl/dz)^2
    and z^2, (num_layers, m) float64; gates (num_layers, n, m)."""

    square_input_slope: Tensor
    square_slope: Tensor
    square_z: Tensor
    gates: Tensor


def measure_importance(model: TorchModel, texts: Sequence[TuningText], progress: Progress) -> Importance:
    """One forward and one backward pass per text, its answer's tokens counted."""
    sums = []
    with progress.task("measuring importance", len(texts)) as advance:
        for text in texts:
            sums.append(_of_text(model, text))
            advance()
    num_tokens = sum(len(text.answer) - 1 for text in texts)
    down = _at_least_some(_rms([item.square_slope for item in sums], num_tokens))
    typical = _rms([item.square_z for item in sums], num_tokens) * down
    worth = np.stack([gate_worth(torch.cat(parts)) for parts in zip(*(item.gates for item in sums), strict=True)])
    inputs = _at_least_some(_rms([item.square_input_slope for item in sums], num_tokens))
    inputs *= np.sqrt(model.spec.hidden_size / model.spec.intermediate_size)
    weights = ScoreWeights(*(as_stored(values.astype(np.float32)) for values in (inputs, worth * down, down)))
    return Importance(weights, float(np.median(typical)))


def _rms(sums: Sequence[Tensor], num_tokens: int) -> Floats:
    """Root-mean-square from sums of squares, (num_layers, size)."""
    rms: Floats = np.sqrt(sum(item.numpy() for item in sums) / num_tokens)
    return rms


def _at_least_some(rms: Floats) -> Floats:
    """What never counted in these texts may count in others."""
    floored: Floats = np.maximum(rms, _SMALLEST_SHARE * rms.mean(axis=1, keepdims=True))
    return floored


def gate_worth(gates: Tensor) -> Floats:
    """Of neurons whose act(g) was `gates` (n, m): 1 / sqrt(t), (m,), with t such that mean(max(gates^2 t - 1, 0)) = 1.

    t is u^2 E[(dl/dz)^2] in units of the price from which reading the gate pays. A constant gate g has g / sqrt(2).
    """
    squares = gates.double().square()
    mean = squares.mean(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    # mean(max(g^2 t - 1, 0)) <= mean(g^2) t, and >= mean(g^2) t - 1
    low, high = 1.0 / mean, 2.0 / mean
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2.0
        won = (squares * middle - 1.0).clamp(min=0.0).mean(dim=0)
        low, high = torch.where(won < 1.0, middle, low), torch.where(won < 1.0, high, middle)
    worth: Floats = ((low + high) / 2.0).rsqrt().numpy()
    return worth


def _of_text(model: TorchModel, text: TuningText) -> _Sums:
    token_ids, start = torch.tensor(text.prompt + text.answer, device=model.device), len(text.prompt)
    with torch.enable_grad():
        ffn = TracingFfn(model)
        hidden = final_states(model, token_ids, ffn)
        loss = next_token_loss(model.logits(hidden).float(), token_ids, start + 1)
        gradients = torch.autograd.grad(loss, [trace.z for trace in ffn.traces])
    decoded = slice(start, -1)
    through_up = [
        (gradient * trace.gate.detach())[decoded] @ layer.up_proj
        for gradient, trace, layer in zip(gradients, ffn.traces, model.layers, strict=True)
    ]
    return _Sums(
        torch.stack([slope.double().square().sum(dim=0) for slope in through_up]),
        torch.stack([gradient[decoded].double().square().sum(dim=0) for gradient in gradients]),
        torch.stack([trace.z.detach()[decoded].double().square().sum(dim=0) for trace in ffn.traces]),
        torch.stack([trace.gate.detach()[decoded][::_GATE_STRIDE].half() for trace in ffn.traces]),
    )
