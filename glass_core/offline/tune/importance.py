"""What neurons and inputs count for in the cascade's scores, measured instead of read off their weights.

A neuron's output: the root-mean-square of the loss's derivative with respect to it. The answers are the model's own,
drawn at temperature 1, so the mean square over their tokens is the diagonal of the Fisher information: to second order,
leaving out z_j costs z_j^2 E[(dl/dz_j)^2] / 2 of KL (the criterion of arXiv 1801.05787). Unlike the norm of a neuron's
down column it is in one unit for all layers.

An input of the FFN, of both its gate_proj and its up_proj: likewise the derivative with respect to it, per weight of
its two columns. So one threshold for all layers and stages shares the reads out.
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


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """Weights as an artifact stores them, and the median over neurons of RMS(z) * weights.down, where a search for
    thresholds may begin."""

    weights: ScoreWeights
    typical_score: float


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Of one text's decoded tokens, float64: sums of (dl/dx)^2, (num_layers, hidden_size), of (dl/dz)^2 and z^2,
    (num_layers, m)."""

    square_input_slope: Tensor
    square_slope: Tensor
    square_z: Tensor


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
    inputs = _at_least_some(_rms([item.square_input_slope for item in sums], num_tokens))
    inputs *= np.sqrt(model.spec.hidden_size / (2 * model.spec.intermediate_size))
    weights = ScoreWeights(*(as_stored(values.astype(np.float32)) for values in (inputs, down)))
    return Importance(weights, float(np.median(typical)))


def _rms(sums: Sequence[Tensor], num_tokens: int) -> Floats:
    """Root-mean-square from sums of squares, (num_layers, size)."""
    rms: Floats = np.sqrt(sum(item.numpy() for item in sums) / num_tokens)
    return rms


def _at_least_some(rms: Floats) -> Floats:
    """What never counted in these texts may count in others."""
    floored: Floats = np.maximum(rms, _SMALLEST_SHARE * rms.mean(axis=1, keepdims=True))
    return floored


def _of_text(model: TorchModel, text: TuningText) -> _Sums:
    token_ids, start = torch.tensor(text.prompt + text.answer, device=model.device), len(text.prompt)
    with torch.enable_grad():
        ffn = TracingFfn(model)
        hidden = final_states(model, token_ids, ffn)
        loss = next_token_loss(model.logits(hidden).float(), token_ids, start + 1)
        wanted = [trace.x for trace in ffn.traces] + [trace.z for trace in ffn.traces]
        gradients = torch.autograd.grad(loss, wanted)
    decoded, num_layers = slice(start, -1), len(ffn.traces)
    return _Sums(
        _square_sums(gradients[:num_layers], decoded),
        _square_sums(gradients[num_layers:], decoded),
        _square_sums([trace.z.detach() for trace in ffn.traces], decoded),
    )


def _square_sums(layers: Sequence[Tensor], tokens: slice) -> Tensor:
    """Sums over these tokens of the squares of each layer's (n, size): (num_layers, size) float64."""
    return torch.stack([values[tokens].double().square().sum(dim=0) for values in layers])
