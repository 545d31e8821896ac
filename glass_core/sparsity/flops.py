"""Exact FLOP and byte accounting of one step row, dense and sparse, from the model's sizes alone.

Counted are the matrix products that execute, a multiply-add as two FLOPs: q/k/v/o projections, attention scores and
values over the executed rectangle (tokens x keys, masked or not), the three FFN products, and the LM head for the
positions whose logits are asked for. Embedding look-ups, norms, RoPE, softmax and activations are not matrix products
and are not counted. Everything is an integer: the server's saved-FLOPs counters must match the plans' arithmetic to
the last FLOP.
"""

from collections.abc import Sequence
from fractions import Fraction

from glass_core.api import StepCost
from glass_core.models.spec import ModelSpec

FFN_MATRICES = 3  # gate_proj, up_proj, down_proj


def projection_flops(spec: ModelSpec, num_tokens: int) -> int:
    """q, k, v and o projections of one layer."""
    weights = spec.hidden_size * (spec.q_size + 2 * spec.kv_size) + spec.q_size * spec.hidden_size
    return 2 * num_tokens * weights


def attention_flops(spec: ModelSpec, num_tokens: int, num_keys: int) -> int:
    """Scores (q k^T) and values (p v) of one layer: every token against every one of `num_keys` keys."""
    return 2 * 2 * num_tokens * num_keys * spec.q_size


def ffn_weights(spec: ModelSpec, num_neurons: int) -> int:
    """Weights that `num_neurons` neurons own: a row of gate, a row of up and a column of down each."""
    return FFN_MATRICES * spec.hidden_size * num_neurons


def ffn_flops(spec: ModelSpec, num_tokens: int, num_neurons: int) -> int:
    """FFN products with `num_neurons` neurons, of one layer or summed over layers (the count is linear)."""
    return 2 * num_tokens * ffn_weights(spec, num_neurons)


def ffn_bytes(spec: ModelSpec, num_neurons: int, bytes_per_weight: float) -> int:
    """Weight bytes one pass reads for `num_neurons` neurons; a quantized weight may take a fraction of a byte.

    Rounded to the nearest byte once, after an exact product.
    """
    return round(Fraction(bytes_per_weight) * ffn_weights(spec, num_neurons))


def lm_head_flops(spec: ModelSpec, num_logits: int) -> int:
    """Vocabulary projection of `num_logits` positions."""
    return 2 * num_logits * spec.hidden_size * spec.vocab_size


def row_cost(
    spec: ModelSpec,
    *,
    num_tokens: int,
    num_keys: int,
    num_logits: int,
    budgets: Sequence[int] | None,
    bytes_per_weight: float,
) -> StepCost:
    """Cost of one row of a step, next to the dense cost of the same row.

    `num_tokens` tokens run against `num_keys` = start + num_tokens keys; `budgets[l]` neurons run in layer l, None =
    all. FFN weights are read once per row and step, however many tokens the row has. The row is computed by itself,
    so its plan alone would have cost the same.
    Raises ValueError when the counts contradict each other or the model.
    """
    _check_counts(num_tokens, num_keys, num_logits)
    num_neurons = spec.num_layers * spec.intermediate_size if budgets is None else _total_budget(spec, budgets)
    return _cost_with_ffn(
        spec,
        (num_tokens, num_keys, num_logits),
        bytes_per_weight,
        ffn_computed=ffn_flops(spec, num_tokens, num_neurons),
        bytes_computed=ffn_bytes(spec, num_neurons, bytes_per_weight),
    )


def refined_row_cost(
    spec: ModelSpec,
    *,
    num_tokens: int,
    num_keys: int,
    num_logits: int,
    num_products: int,
    num_weights: int,
    bytes_per_weight: float,
) -> StepCost:
    """Cost of one row whose plan is refined, next to the dense cost of the same row.

    `num_products`: weights (of gate, up and down alike) that the cascade multiplies, summed over tokens and layers;
    `num_weights`: the distinct ones, each read once. Raises ValueError as `row_cost`, and for more than there are.
    """
    _check_counts(num_tokens, num_keys, num_logits)
    most = ffn_weights(spec, spec.num_layers * spec.intermediate_size)
    if not 0 <= num_weights <= min(num_products, most) or num_products > num_tokens * most:
        raise ValueError(
            f"a cascade of {num_tokens} tokens cannot read {num_weights} weights in {num_products} products"
        )
    return _cost_with_ffn(
        spec,
        (num_tokens, num_keys, num_logits),
        bytes_per_weight,
        ffn_computed=2 * num_products,
        bytes_computed=round(Fraction(bytes_per_weight) * num_weights),
    )


def _cost_with_ffn(
    spec: ModelSpec, counts: tuple[int, int, int], bytes_per_weight: float, *, ffn_computed: int, bytes_computed: int
) -> StepCost:
    """The row's cost with this much work in the FFN; `counts`: its tokens, keys and logits."""
    num_tokens, num_keys, num_logits = counts
    all_neurons = spec.num_layers * spec.intermediate_size
    per_layer = projection_flops(spec, num_tokens) + attention_flops(spec, num_tokens, num_keys)
    other = spec.num_layers * per_layer + lm_head_flops(spec, num_logits)
    ffn_dense = ffn_flops(spec, num_tokens, all_neurons)
    return StepCost(
        flops_dense=other + ffn_dense,
        flops_computed=other + ffn_computed,
        ffn_flops_dense=ffn_dense,
        ffn_flops_computed=ffn_computed,
        ffn_bytes_dense=ffn_bytes(spec, all_neurons, bytes_per_weight),
        ffn_bytes_computed=bytes_computed,
        ffn_flops_planned=ffn_computed,
        ffn_bytes_planned=bytes_computed,
    )


def _check_counts(num_tokens: int, num_keys: int, num_logits: int) -> None:
    if num_tokens < 1:
        raise ValueError(f"a row runs at least one token, got num_tokens={num_tokens}")
    if num_keys < num_tokens:
        raise ValueError(f"a row's own tokens are among its keys: num_keys={num_keys} < num_tokens={num_tokens}")
    if not 0 <= num_logits <= num_tokens:
        raise ValueError(f"num_logits must lie in [0, num_tokens={num_tokens}], got {num_logits}")


def _total_budget(spec: ModelSpec, budgets: Sequence[int]) -> int:
    if len(budgets) != spec.num_layers:
        raise ValueError(f"expected one budget per layer ({spec.num_layers}), got {len(budgets)}")
    if min(budgets) < 0 or max(budgets) > spec.intermediate_size:
        raise ValueError(f"budgets must lie in [0, {spec.intermediate_size}], got {min(budgets)} to {max(budgets)}")
    return sum(budgets)
