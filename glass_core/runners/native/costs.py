"""What a native step executed, row by row.

All rows of a step walk the union of their plans together. FLOPs: a neuron of the union was computed for every row, so
it counts for every row, kept or masked. Bytes: a neuron was read once for all, so the bytes read are split evenly
between the rows, to the byte, and so are those a dense step would have read. A layer's weights are counted once per
step, although a long prefill passes over them once per tile of tokens: the later passes hit the caches.
"""

from collections.abc import Sequence
from itertools import pairwise

from glass_core.api import StepCost
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepRow
from glass_core.sparsity.flops import attention_flops, ffn_flops, lm_head_flops, projection_flops


def row_costs(
    spec: ModelSpec, rows: Sequence[StepRow], *, num_neurons: int, num_bytes: int, dense_bytes: int
) -> list[StepCost]:
    """Costs in the order of the rows.

    `num_neurons` neurons were computed per token and `num_bytes` FFN weight bytes read, over all layers; a dense step
    reads `dense_bytes`.
    """
    computed, dense = split_evenly(num_bytes, len(rows)), split_evenly(dense_bytes, len(rows))
    return [
        _row_cost(spec, row, num_neurons=num_neurons, num_bytes=computed[index], dense_bytes=dense[index])
        for index, row in enumerate(rows)
    ]


def split_evenly(total: int, parts: int) -> list[int]:
    """`parts` integers that differ by at most one and sum to `total`."""
    bounds = [total * index // parts for index in range(parts + 1)]
    return [end - start for start, end in pairwise(bounds)]


def _row_cost(spec: ModelSpec, row: StepRow, *, num_neurons: int, num_bytes: int, dense_bytes: int) -> StepCost:
    num_tokens = len(row.token_ids)
    per_layer = projection_flops(spec, num_tokens) + attention_flops(spec, num_tokens, row.start + num_tokens)
    other = spec.num_layers * per_layer + lm_head_flops(spec, 0 if row.sample is None else 1)
    ffn_computed = ffn_flops(spec, num_tokens, num_neurons)
    ffn_dense = ffn_flops(spec, num_tokens, spec.num_layers * spec.intermediate_size)
    return StepCost(
        flops_dense=other + ffn_dense,
        flops_computed=other + ffn_computed,
        ffn_flops_dense=ffn_dense,
        ffn_flops_computed=ffn_computed,
        ffn_bytes_dense=dense_bytes,
        ffn_bytes_computed=num_bytes,
    )
