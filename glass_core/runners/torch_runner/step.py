"""One step laid out for the model: all rows' tokens in one flat list, dense rows first.

With dense rows first, the tokens that share the dense FFN are one slice and every sparse row is one slice after it; the
projections and the LM head run once over everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepBatch, StepRow
from glass_core.runners.torch_runner.attention import PagedAttention, RowPages, VisibilityMasks
from glass_core.runners.torch_runner.kv_pool import KVPool
from glass_core.runners.torch_runner.model import Ffn, TorchModel
from glass_core.runners.torch_runner.statistics import StatisticsCollector


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row, its index in the batch and the slice of the step's tokens it got."""

    index: int
    row: StepRow
    tokens: slice


def place_rows(batch: StepBatch) -> tuple[PlacedRow, ...]:
    """Rows in execution order: dense ones first, each group in the order of the batch."""
    order = sorted(range(len(batch.rows)), key=lambda index: batch.rows[index].plan is not None)
    placed, start = [], 0
    for index in order:
        row = batch.rows[index]
        placed.append(PlacedRow(index, row, slice(start, start + len(row.token_ids))))
        start += len(row.token_ids)
    return tuple(placed)


def flat_tokens(placed: Sequence[PlacedRow], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, positions and RoPE lengths of all rows, each (n,) int64."""
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    for item in placed:
        row, end = item.row, item.row.start + len(item.row.token_ids)
        ids += row.token_ids
        positions += range(row.start, end)
        # without a known prompt length the row counts as one call of HF: its end is the length
        prompt_length = end if row.num_prompt_tokens is None else row.num_prompt_tokens
        lengths += [max(prompt_length, position + 1) for position in range(row.start, end)]
    ids_tensor, positions_tensor, lengths_tensor = (
        torch.tensor(values, dtype=torch.int64, device=device) for values in (ids, positions, lengths)
    )
    return ids_tensor, positions_tensor, lengths_tensor


def paged_attention(spec: ModelSpec, pool: KVPool, placed: Sequence[PlacedRow], device: torch.device) -> PagedAttention:
    """Attention over the pool for every row of the step."""
    return PagedAttention(pool, [_pages(spec, pool, item, device) for item in placed], spec.score_scale)


def _pages(spec: ModelSpec, pool: KVPool, item: PlacedRow, device: torch.device) -> RowPages:
    start, num_tokens = item.row.start, len(item.row.token_ids)
    slots = pool.slots(item.row.block_table, start + num_tokens)
    return RowPages(item.tokens, slots, VisibilityMasks(spec, start, num_tokens, device))


class StepFfn:
    """The FFN of one step: the dense rows together, each sparse row through its own FFN."""

    def __init__(
        self,
        model: TorchModel,
        placed: Sequence[PlacedRow],
        sparse: Sequence[Ffn | None],
        collectors: Sequence[StatisticsCollector | None],
    ) -> None:
        """`sparse` (the FFN of a row with a plan) and `collectors` are parallel to `placed`; None = a dense row, a row
        that is not measured."""
        self._model = model
        self._num_dense_tokens = sum(len(item.row.token_ids) for item in placed if item.row.plan is None)
        self._sparse = [(item.tokens, ffn) for item, ffn in zip(placed, sparse, strict=True) if ffn is not None]
        self._measured = [
            (item.tokens, collector)
            for item, collector in zip(placed, collectors, strict=True)
            if collector is not None
        ]

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        parts = [self._dense(layer, x[: self._num_dense_tokens])] if self._num_dense_tokens else []
        parts += [ffn(layer, x[tokens]) for tokens, ffn in self._sparse]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _dense(self, layer: int, x: Tensor) -> Tensor:
        z = self._model.ffn_activation(layer, x)
        for tokens, collector in self._measured:
            collector.add(layer, z[tokens])
        return self._model.ffn_output(layer, z)
