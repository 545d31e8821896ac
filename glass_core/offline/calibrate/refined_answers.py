"""Many answers decoded under refined plans side by side, one token of each per step, as `evaluate/refined.py` does one.

Each row keeps its own thresholds, cache and reads controller, so the predictions are a server's; only the weights are
read once for all rows, which makes a table of expected KL a matter of a minute instead of ten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from glass_core.engine.refine_control import ReadsController
from glass_core.offline.divergence import token_kl
from glass_core.offline.evaluate.longform import DenseAnswer
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.ffn import ACTIVATIONS
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.refinement import Refinement


@dataclass(slots=True, eq=False)
class RefinedAnswer:
    """One dense answer, teacher-forced under one refinement. `kl` sums over the tokens decoded so far, in nats."""

    dense: DenseAnswer
    refinement: Refinement
    cache: SequenceCache
    controller: ReadsController
    kl: float = field(default=0.0, init=False)

    @classmethod
    def begin(cls, dense: DenseAnswer, refinement: Refinement) -> Self:
        return cls(dense, refinement, dense.prompt_cache.fork(), ReadsController(refinement.reads))

    def observe(self, index: int, log_probs: Tensor, reads: float) -> None:
        """Token `index` predicted `log_probs` (vocab,) and read this share of the FFN."""
        self.controller.observe(index, index + 1, reads)
        self.kl += float(token_kl(self.dense.log_probs[index], log_probs))


@torch.no_grad()
def decode_refined(model: TorchModel, answers: Sequence[RefinedAnswer]) -> None:
    """Decode all answers to their ends. Their refinements share one model's score weights."""
    for index in range(max(len(answer.dense.continuation) for answer in answers)):
        rows = [answer for answer in answers if index < len(answer.dense.continuation)]
        scales = [answer.controller.scales(index, index + 1)[0] for answer in rows]
        ffn = _RowsFfn(model, [row.refinement for row in rows], scales)
        positions = torch.tensor([row.cache.num_tokens for row in rows], device=model.device)
        hidden = model.forward(
            torch.stack([row.dense.continuation[index] for row in rows]),
            positions,
            attention=_RowsAttention([row.cache for row in rows]),
            ffn=ffn,
            rope_lengths=positions + 1,
        )
        log_probs = torch.log_softmax(model.logits(hidden), dim=-1)
        for row, own, reads in zip(rows, log_probs, ffn.reads, strict=True):
            row.observe(index, own, reads)


class _RowsAttention:
    """Attention of one token per sequence, each over its own cache. An `Attention`."""

    def __init__(self, caches: Sequence[SequenceCache]) -> None:
        self._caches = caches

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ones = (torch.split(part, 1) for part in (q, k, v))
        return torch.cat([cache(layer, *own) for cache, *own in zip(self._caches, *ones, strict=True)])


class _RowsFfn:
    """An `Ffn` that refines every row (token) by thresholds of its own, and counts what each reads."""

    def __init__(self, model: TorchModel, refinements: Sequence[Refinement], scales: Sequence[float]) -> None:
        self._model = model
        factors = torch.tensor(scales, dtype=torch.float32)[:, None]
        self._up = _thresholds([item.up_thresholds for item in refinements], factors).to(model.device)
        self._down = _thresholds([item.down_thresholds for item in refinements], factors).to(model.device)
        self._up_weights = torch.from_numpy(refinements[0].up_weights).to(model.device)
        self._down_norms = torch.from_numpy(refinements[0].down_norms).to(model.device)
        self._num_products = torch.zeros(len(refinements), dtype=torch.int64, device=model.device)

    @property
    def reads(self) -> list[float]:
        """Share of FFN weights each row read."""
        spec = self._model.spec
        shares: list[float] = (self._num_products / (3 * spec.num_layers * spec.intermediate_size)).tolist()
        return shares

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        weights = self._model.layers[layer].ffn
        gate, up = functional.linear(x, weights.gate_up, weights.gate_up_bias).chunk(2, dim=-1)
        gated = up.float().abs() * self._up_weights[layer] >= self._up[:, layer, None]
        z = ACTIVATIONS[self._model.spec.activation](gate) * up
        kept = gated & (z.float().abs() * self._down_norms[layer] >= self._down[:, layer, None])
        self._num_products += up.shape[-1] + gated.sum(dim=-1) + kept.sum(dim=-1)
        return self._model.ffn_output(layer, torch.where(kept, z, 0.0))


def _thresholds(values: Sequence[object], factors: Tensor) -> Tensor:
    """(rows, layers) thresholds times a factor per row (rows, 1)."""
    return torch.stack([torch.as_tensor(row) for row in values]) * factors
