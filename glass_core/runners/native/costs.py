"""What a native step executed, row by row, next to what each row's plan alone would have taken.

All rows of a step walk the same neurons, at least the union of their plans; with refined rows, the union of what their
cascades want of down, and refined rows the union of their inputs' columns of gate and up. FLOPs: what was walked was
computed for every token that it was walked for, so it counts for each of them, kept or masked. Bytes: a weight was
read once for all, so the bytes read are split evenly between the rows, to the byte, and so are those a dense step would
have read. A layer's weights are counted once per step, although a long prefill passes over them once per tile of
tokens: the later passes hit the caches.

Planned is what the row would cost in the same step if exactly the neurons of its plan were walked, or what the cascades
of a refined row's tokens take: in bytes its share of them. So dense, computed and planned are comparable, row by row
and in sum: planned <= computed <= dense, and a step that walks the union of one plan executes what is planned. Two
kinds of step can read more bytes than a dense one: where refined rows meet others, gate_proj and up_proj are read by
columns and by rows; and columns are padded by the number of neurons, rows by the hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glass_core.api import StepCost
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepRow
from glass_core.runners.native.ffn_work import FfnWork
from glass_core.sparsity.flops import attention_flops, lm_head_flops, projection_flops


@dataclass(frozen=True, slots=True)
class ExecutedWork:
    """What a step executed: weights multiplied for every token whose plan is not refined, and for every token whose
    plan is; weight bytes read for all together."""

    plain_weights: int
    refined_weights: int
    num_bytes: int

    def of(self, row: StepRow) -> FfnWork:
        """What it was for this row's tokens."""
        return FfnWork(self.refined_weights if row.is_refined else self.plain_weights, self.num_bytes)


def row_costs(
    spec: ModelSpec, rows: Sequence[StepRow], *, executed: ExecutedWork, dense: FfnWork, planned: Sequence[FfnWork]
) -> list[StepCost]:
    """Costs in the order of the rows. `executed` and `dense` are of the step, with weights per token; `planned` are of
    each row alone, with the weights of all its tokens."""
    costs = []
    for index, (row, plan) in enumerate(zip(rows, planned, strict=True)):
        works = (dense, executed.of(row), plan)
        num_bytes = [share_of(work.num_bytes, index, len(rows)) for work in works]
        costs.append(_row_cost(spec, row, works, num_bytes))
    return costs


def share_of(total: int, index: int, parts: int) -> int:
    """The index-th of `parts` integers that differ by at most one and sum to `total`.

    Of two totals the larger one has no smaller share anywhere, so nothing computed exceeds its dense counterpart.
    """
    quotient, remainder = divmod(total, parts)
    return quotient + (index < remainder)


def _row_cost(spec: ModelSpec, row: StepRow, works: Sequence[FfnWork], num_bytes: Sequence[int]) -> StepCost:
    """`works`: of a dense step, of the executed one, of the row alone; `num_bytes`: the row's share of each."""
    num_tokens = len(row.token_ids)
    per_layer = projection_flops(spec, num_tokens) + attention_flops(spec, num_tokens, row.start + num_tokens)
    other = spec.num_layers * per_layer + lm_head_flops(spec, 0 if row.sample is None else 1)
    dense, computed, planned = works
    ffn_dense, ffn_computed, ffn_planned = (
        2 * num_weights
        for num_weights in (num_tokens * dense.num_weights, num_tokens * computed.num_weights, planned.num_weights)
    )
    bytes_dense, bytes_computed, bytes_planned = num_bytes
    return StepCost(
        flops_dense=other + ffn_dense,
        flops_computed=other + ffn_computed,
        ffn_flops_dense=ffn_dense,
        ffn_flops_computed=ffn_computed,
        ffn_bytes_dense=bytes_dense,
        ffn_bytes_computed=bytes_computed,
        ffn_flops_planned=ffn_planned,
        ffn_bytes_planned=bytes_planned,
    )
