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

from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.ffn import ffn_activation
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.refinement import STAGES


class _HardMask(torch.autograd.Function):
    """One stage: the values whose scores reach the threshold, else 0."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, margin: Tensor, *rest: Any) -> Tensor:
        """`margin` (n, k): log score - log threshold; `rest`: the log threshold (n,), and the width."""
        _, ctx.width = rest
        ctx.save_for_backward(values, margin)
        return torch.where(margin >= 0, values, torch.zeros_like(values))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, margin = ctx.saved_tensors
        slope = -(grad.float() * values.float() * kernel(margin, ctx.width)).sum(dim=-1)
        return torch.where(margin >= 0, grad, torch.zeros_like(grad)), None, slope, None


def hard_mask(values: Tensor, margin: Tensor, log_threshold: Tensor, width: float) -> Tensor:
    """`values` (n, k) where `margin` (n, k) is not negative, differentiable in them and in `log_threshold` (n,)."""
    masked: Tensor = _HardMask.apply(values, margin, log_threshold, width)  # type: ignore[no-untyped-call]
    return masked


def kernel(margin: Tensor, width: float) -> Tensor:
    """Derivative of sigma(margin / width)."""
    share = torch.sigmoid(margin / width)
    return share * (1.0 - share) / width


class CascadeFfn:
    """An `Ffn` of rows from several texts, each text under its own thresholds, that counts what is read.

    `log_weights`: logarithms of the score weights; `log_thresholds` (num_texts, len(STAGES), num_layers);
    `text_of_row` (n,). After a forward pass `reads` (num_texts,) is each text's mean share of FFN reads per token, and
    `slopes` (num_texts, len(STAGES), num_layers) its derivative with respect to each logarithm, by the same kernel, for
    the activations as they were.
    """

    def __init__(
        self, model: TorchModel, log_weights: StageTensors, log_thresholds: Tensor, text_of_row: Tensor, width: float
    ) -> None:
        self._model, self._log_weights, self._width = model, log_weights, width
        self._logs, self._text_of_row = log_thresholds, text_of_row
        num_texts = len(log_thresholds)
        tokens = torch.bincount(text_of_row, minlength=num_texts).double()
        self._unit = 1.0 / (3.0 * tokens * model.spec.num_layers)
        self.reads = torch.zeros(num_texts, dtype=torch.float64)
        self.slopes = torch.zeros(num_texts, len(STAGES), model.spec.num_layers, dtype=torch.float64)

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        weights, scores = self._model.layers[layer].ffn, self._log_weights.of_layer(layer)
        logs = self._logs[self._text_of_row, :, layer].unbind(dim=1)
        inputs = _margin(x, scores.inputs, logs[0])
        kept = hard_mask(x, inputs, logs[0], self._width)
        z = ffn_activation(weights, self._model.spec.activation, kept)
        down = _margin(z, scores.down, logs[1])
        self._count(layer, StageTensors(inputs, down))
        return self._model.ffn_output(layer, hard_mask(z, down, logs[1], self._width))

    @torch.no_grad()
    def _count(self, layer: int, margins: StageTensors) -> None:
        # inputs are read of two of the FFN's three matrices
        shares = 2.0 * _share(margins.inputs >= 0) + _share(margins.down >= 0)
        slopes = 2.0 * _share(kernel(margins.inputs, self._width)), _share(kernel(margins.down, self._width))
        self.reads += self._unit * self._by_text(shares)
        for stage, slope in enumerate(slopes):
            self.slopes[:, stage, layer] = -self._unit * self._by_text(slope)

    def _by_text(self, values: Tensor) -> Tensor:
        total = torch.zeros(len(self._logs), dtype=torch.float64)
        return total.index_add_(0, self._text_of_row, values)


@torch.no_grad()
def _margin(values: Tensor, log_weights: Tensor, log_threshold: Tensor) -> Tensor:
    """log score - log threshold, (n, k), of `values` (n, k)."""
    return values.float().abs().log() + log_weights - log_threshold[:, None]


def _share(values: Tensor) -> Tensor:
    """Sum over a row, (n,), as a share of its length."""
    return values.sum(dim=-1).double() / values.shape[-1]
