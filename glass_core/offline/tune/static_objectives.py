"""The static objectives: KL(dense || pruned) of each text's answer, and its derivative by every neuron's mask.

As a server does it, the prompt is read densely and its own statistics choose the neurons; the answer's tokens are
pruned. Masks are one per text, so all that later steps need of a backward pass is its sum over the text's tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glass_core.offline.divergence import token_kl
from glass_core.offline.tune.domains import TuningText
from glass_core.offline.tune.objectives import DenseText
from glass_core.offline.tune.offsets import FloatArray
from glass_core.offline.tune.static_masks import RankPair
from glass_core.runners.torch_runner.attention import JoinedCaches, SequenceCache
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.statistics import StatisticsCollector
from glass_core.sparsity.ranking import Ranks, ranks


@dataclass(frozen=True, slots=True, eq=False)
class StaticText:
    """A text as the dense model sees it, and the rankings that choose its neurons."""

    dense: DenseText
    pair: RankPair


@torch.no_grad()
def read_statically(model: TorchModel, text: TuningText, model_ranks: Ranks) -> StaticText:
    """The dense pass over prompt and answer, the prompt's statistic (l1) ranked."""
    prompt, follows = (torch.tensor(part, device=model.device) for part in (text.prompt, text.answer[:-1]))
    collector, cache = StatisticsCollector(model.spec, len(prompt)), SequenceCache(model.spec)

    def collecting_ffn(layer: int, x: Tensor) -> Tensor:
        z = model.ffn_activation(layer, x)
        collector.add(layer, z)
        return model.ffn_output(layer, z)

    model.forward(prompt, torch.arange(len(prompt)), attention=cache, ffn=collecting_ffn)
    past, positions = cache.fork(), torch.arange(len(prompt), len(prompt) + len(follows))
    hidden = model.forward(follows, positions, attention=cache, ffn=model.dense_ffn)
    pair = RankPair(ranks(collector.result().l1()), model_ranks)
    return StaticText(DenseText(follows, len(prompt), past, hidden), pair)


class _Masked(torch.autograd.Function):
    """z with the masks of its row's text, whose derivative by the masks is summed over the text's rows in float32."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, masks: Tensor, lengths: list[int]) -> Tensor:
        """z (n, m), masks (num_texts, m), rows of each text."""
        rows = torch.repeat_interleave(masks.to(z.dtype), torch.tensor(lengths), dim=0)
        ctx.save_for_backward(z, rows)
        ctx.lengths = lengths
        return z * rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, rows = ctx.saved_tensors
        parts = zip(torch.split(grad, ctx.lengths), torch.split(z, ctx.lengths), strict=True)
        worth = torch.stack([(own.float() * activation.float()).sum(dim=0) for own, activation in parts])
        return grad * rows, worth, None


class StaticBatch:
    """Several texts that are run together, each under its own masks."""

    def __init__(self, model: TorchModel, texts: Sequence[StaticText]) -> None:
        self._model, self.texts = model, texts
        self._lengths = [len(text.dense.token_ids) for text in texts]
        self._token_ids = torch.cat([text.dense.token_ids for text in texts])
        starts = torch.tensor([text.dense.start for text in texts])
        within = torch.cat([torch.arange(length) for length in self._lengths])
        self._positions = within + torch.repeat_interleave(starts, torch.tensor(self._lengths))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> FloatArray:
        """Of every text, (num_texts,)."""
        return np.array(self._lengths, np.float64)

    @torch.no_grad()
    def measure(self, conditions: Sequence[Tensor]) -> Tensor:
        """Mean KL of every text under each condition's masks (num_texts, num_layers, m): (conditions, num_texts)."""
        dense = list(self._dense())
        return torch.stack([self._kl_and_slopes(self._forward(masks), dense)[0] for masks in conditions])

    def differentiate(self, conditions: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each condition mean KL (num_texts,), and its derivatives by the masks (num_texts, num_layers, m)."""
        dense = list(self._dense())
        for masks in conditions:
            leaf = masks.float().requires_grad_()
            with torch.enable_grad():
                hidden = self._forward(leaf)
            kl, slopes = self._kl_and_slopes(hidden.detach(), dense)
            (gradients,) = torch.autograd.grad(hidden, leaf, slopes)
            yield kl, gradients

    def _forward(self, masks: Tensor) -> Tensor:
        function: Any = _Masked

        def ffn(layer: int, x: Tensor) -> Tensor:
            kept = function.apply(self._model.ffn_activation(layer, x), masks[:, layer], self._lengths)
            return self._model.ffn_output(layer, kept)

        attention = JoinedCaches([text.dense.cache.fork() for text in self.texts], self._lengths)
        return self._model.forward(self._token_ids, self._positions, attention=attention, ffn=ffn)

    @torch.no_grad()
    def _dense(self) -> Iterator[Tensor]:
        """Each text's log-probabilities under the dense model."""
        for text in self.texts:
            yield torch.log_softmax(self._model.logits(text.dense.hidden), dim=-1)

    @torch.no_grad()
    def _kl_and_slopes(self, hidden: Tensor, dense: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean KL of every text and its derivative by the final hidden states (n, hidden): q - p through the head."""
        values, slopes = [], []
        for reference, own in zip(dense, torch.split(hidden, self._lengths), strict=True):
            found = torch.log_softmax(self._model.logits(own), dim=-1)
            values.append(token_kl(reference, found).double().mean())
            difference = (found.exp() - reference.exp()) / len(own)
            slopes.append(difference.to(hidden.dtype) @ self._model.weights.lm_head)
        return torch.stack(values), torch.cat(slopes)
