"""The cascade with hard thresholds forward, and the thresholds' derivative by a kernel backward.

A mask is a step of log score - log threshold, whose derivative is zero almost everywhere. In the mean over many neurons
and tokens it is not: it is the density of scores at the threshold times what a neuron there is worth. That mean is
estimated with the derivative of sigma(x / width) / width as kernel: the straight-through form of the soft mask
sigma((log score - log threshold) / width). So every loss is one of hard masks, and only its slope is smoothed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glass_core.offline.calibrate.local_errors import ScoreWeights
from glass_core.runners.torch_runner.ffn import gate_and_up
from glass_core.runners.torch_runner.model import TorchModel


class _HardCascade(torch.autograd.Function):
    """z where both scores reach their thresholds, else 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, up_margin: Tensor, down_margin: Tensor, *rest: Any) -> Tensor:
        """Margins (n, m): log score - log threshold; `rest`: log thresholds (n,) of up and of down, and the width."""
        up_log, down_log, width = rest
        ctx.save_for_backward(z, up_margin, down_margin)
        ctx.width = width
        ctx.needs_thresholds = up_log.requires_grad or down_log.requires_grad
        return torch.where((up_margin >= 0) & (down_margin >= 0), z, torch.zeros_like(z))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, up_margin, down_margin = ctx.saved_tensors
        gated, reached = up_margin >= 0, down_margin >= 0
        worth = grad.float() * z.float()
        up = -(worth * kernel(up_margin, ctx.width) * reached).sum(dim=-1)
        down = -(worth * kernel(down_margin, ctx.width) * gated).sum(dim=-1)
        return torch.where(gated & reached, grad, torch.zeros_like(grad)), None, None, up, down, None


def kernel(margin: Tensor, width: float) -> Tensor:
    """Derivative of sigma(margin / width)."""
    share = torch.sigmoid(margin / width)
    return share * (1.0 - share) / width


class CascadeFfn:
    """An `Ffn` of rows from several texts, each text under its own thresholds, that counts what is read.

    `log_thresholds` (num_texts, 2, num_layers): of up and of down; `text_of_row` (n,). After a forward pass `reads`
    (num_texts,) is each text's mean share of FFN reads per token, and `slopes` (num_texts, 2, num_layers) its
    derivative with respect to each logarithm, by the same kernel, for the activations as they were.
    """

    def __init__(
        self, model: TorchModel, weights: ScoreWeights, log_thresholds: Tensor, text_of_row: Tensor, width: float
    ) -> None:
        self._model, self._weights, self._width = model, weights, width
        self._logs, self._text_of_row = log_thresholds, text_of_row
        self._log_weights = ScoreWeights(weights.up.log(), weights.down.log())
        num_texts = len(log_thresholds)
        tokens = torch.bincount(text_of_row, minlength=num_texts).double()
        self._unit = 1.0 / (3.0 * tokens * model.spec.num_layers * model.spec.intermediate_size)
        self.reads = torch.zeros(num_texts, dtype=torch.float64)
        self.slopes = torch.zeros(num_texts, 2, model.spec.num_layers, dtype=torch.float64)

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        gate, up = gate_and_up(self._model.layers[layer].ffn, self._model.spec.activation, x)
        z = gate * up
        up_log, down_log = (self._logs[self._text_of_row, stage, layer] for stage in (0, 1))
        with torch.no_grad():
            up_margin = up.float().abs().log() + self._log_weights.up[layer] - up_log[:, None]
            down_margin = z.float().abs().log() + self._log_weights.down[layer] - down_log[:, None]
            self._count(layer, up_margin, down_margin)
        kept = _HardCascade.apply(z, up_margin, down_margin, up_log, down_log, self._width)  # type: ignore[no-untyped-call]
        return self._model.ffn_output(layer, kept)

    def _count(self, layer: int, up_margin: Tensor, down_margin: Tensor) -> None:
        gated, reached = up_margin >= 0, down_margin >= 0
        num_read = up_margin.shape[1] + gated.sum(dim=-1) + (gated & reached).sum(dim=-1)
        up_slope = -(kernel(up_margin, self._width) * (1.0 + reached.float())).sum(dim=-1)
        down_slope = -(kernel(down_margin, self._width) * gated).sum(dim=-1)
        self.reads += self._unit * self._by_text(num_read)
        self.slopes[:, 0, layer] = self._unit * self._by_text(up_slope)
        self.slopes[:, 1, layer] = self._unit * self._by_text(down_slope)

    def _by_text(self, values: Tensor) -> Tensor:
        total = torch.zeros(len(self._logs), dtype=torch.float64)
        return total.index_add_(0, self._text_of_row, values.double())
