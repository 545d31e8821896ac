"""FLOP and byte accounting against an independent count of the products a toy transformer executes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.models.spec import ModelSpec, RopeSpec
from glass_core.sparsity.flops import ffn_bytes, refined_row_cost, row_cost
from tests.core.sparsity_samples import property_test


def make_spec(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 97,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 64,
        "norm_eps": 1e-5,
        "rope": RopeSpec(theta=1e4),
        "sliding_window": (None, None, None),
    }
    return ModelSpec(**(values | changes))


class ProductCounter:
    """Runs no arithmetic, only shapes: every product (a, b) x (b, c) is a*c dot products of b multiply-adds."""

    def __init__(self) -> None:
        self.flops = 0
        self.ffn_flops = 0

    def product(self, left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
        assert left[1] == right[0]
        for _ in range(left[0]):
            self.flops += right[1] * (right[0] + right[0])
        return left[0], right[1]

    def forward(self, spec: ModelSpec, num_tokens: int, num_keys: int, num_logits: int, budgets: list[int]) -> None:
        hidden = (num_tokens, spec.hidden_size)
        for budget in budgets:
            for heads in (spec.num_attention_heads, spec.num_kv_heads, spec.num_kv_heads):
                self.product(hidden, (spec.hidden_size, heads * spec.head_dim))
            for _ in range(spec.num_attention_heads):
                scores = self.product((num_tokens, spec.head_dim), (spec.head_dim, num_keys))
                self.product(scores, (num_keys, spec.head_dim))
            heads_size = spec.num_attention_heads * spec.head_dim
            self.product((num_tokens, heads_size), (heads_size, spec.hidden_size))
            before = self.flops
            self.product(hidden, (spec.hidden_size, budget))
            self.product(hidden, (spec.hidden_size, budget))
            self.product((num_tokens, budget), (budget, spec.hidden_size))
            self.ffn_flops += self.flops - before
        self.product((num_logits, spec.hidden_size), (spec.hidden_size, spec.vocab_size))


@property_test
@given(
    num_tokens=st.integers(1, 9),
    start=st.integers(0, 9),
    num_logits=st.integers(0, 1),
    budgets=st.lists(st.integers(1, 40), min_size=3, max_size=3),
)
def test_equals_the_executed_products(num_tokens: int, start: int, num_logits: int, budgets: list[int]) -> None:
    spec = make_spec()
    sparse, dense = ProductCounter(), ProductCounter()
    sparse.forward(spec, num_tokens, start + num_tokens, num_logits, budgets)
    dense.forward(spec, num_tokens, start + num_tokens, num_logits, [40] * 3)
    cost = row_cost(
        spec,
        num_tokens=num_tokens,
        num_keys=start + num_tokens,
        num_logits=num_logits,
        budgets=budgets,
        bytes_per_weight=4,
    )
    assert (cost.flops_computed, cost.ffn_flops_computed) == (sparse.flops, sparse.ffn_flops)
    assert (cost.flops_dense, cost.ffn_flops_dense) == (dense.flops, dense.ffn_flops)
    assert cost.flops_saved == cost.ffn_flops_dense - cost.ffn_flops_computed
    assert cost.ffn_bytes_computed == 3 * 24 * sum(budgets) * 4
    assert cost.ffn_bytes_dense == 3 * 24 * 120 * 4


def test_dense_row_saves_nothing() -> None:
    cost = row_cost(make_spec(), num_tokens=5, num_keys=5, num_logits=1, budgets=None, bytes_per_weight=2)
    assert cost.flops_saved == 0
    assert cost.ffn_bytes_dense == cost.ffn_bytes_computed


def test_bytes_do_not_grow_with_the_tokens_of_a_row() -> None:
    one, many = (
        row_cost(make_spec(), num_tokens=n, num_keys=n, num_logits=0, budgets=[9, 8, 7], bytes_per_weight=2)
        for n in (1, 6)
    )
    assert one.ffn_bytes_computed == many.ffn_bytes_computed


def test_fractional_bytes_are_rounded_once_after_an_exact_product() -> None:
    huge = make_spec(hidden_size=10**15 + 1)
    assert ffn_bytes(huge, 7, 0.625) == (21 * (10**15 + 1) * 5 + 4) // 8
    assert isinstance(ffn_bytes(huge, 7, 0.625), int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 0}, "at least one token"),
        ({"num_keys": 1}, "num_keys=1 < num_tokens=2"),
        ({"num_logits": 3}, r"num_logits must lie in \[0, num_tokens=2\], got 3"),
        ({"budgets": [1, 1]}, r"one budget per layer \(3\), got 2"),
        ({"budgets": [1, 1, 41]}, r"\[0, 40\], got 1 to 41"),
    ],
)
def test_contradictory_counts_are_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"num_tokens": 2, "num_keys": 2, "num_logits": 1, "budgets": None, "bytes_per_weight": 4}
    with pytest.raises(ValueError, match=message):
        row_cost(make_spec(), **(values | changes))


def test_a_cascade_that_reads_everything_costs_what_dense_does() -> None:
    spec, counts = make_spec(), {"num_tokens": 2, "num_keys": 5, "num_logits": 1, "bytes_per_weight": 2}
    refined = refined_row_cost(spec, **counts, num_products=2 * 24 * 3 * 3 * 40, num_weights=24 * 3 * 3 * 40)
    assert refined == row_cost(spec, **counts, budgets=None)
    half = refined_row_cost(spec, **counts, num_products=24 * 3 * 3 * 40, num_weights=24 * 3 * 40)
    assert half.ffn_flops_computed * 2 == refined.ffn_flops_computed
    assert half.ffn_bytes_planned * 3 == refined.ffn_bytes_planned
    assert half.flops_saved == refined.ffn_flops_computed - half.ffn_flops_computed


@pytest.mark.parametrize(("num_products", "num_weights"), [(17281, 10), (17280, 8641), (5, 6), (5, -1)])
def test_impossible_cascades_are_refused(num_products: int, num_weights: int) -> None:
    with pytest.raises(ValueError, match="a cascade of 2 tokens cannot read"):
        refined_row_cost(
            make_spec(),
            num_tokens=2,
            num_keys=5,
            num_logits=1,
            num_products=num_products,
            num_weights=num_weights,
            bytes_per_weight=2,
        )
