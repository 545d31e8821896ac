"""Ranks, fusion and top-k against plain-Python references."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glass_core.sparsity import ranking
from glass_core.sparsity.ranking import fuse, ranks, share_within_top_k, top_k
from tests.core.sparsity_samples import property_test

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# few distinct values, so that ties are the rule
coarse = st.sampled_from([-2.0, -0.0, 0.0, 1e-45, 0.5, 0.5000001, 3.0])
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=finite | coarse)


def best_first(row: list[Fraction]) -> list[int]:
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


@property_test
@given(matrices)
def test_ranks_order_neurons_ties_to_the_lower_index(values: np.ndarray) -> None:
    result = ranks(values)
    for row, row_ranks in zip(values, result, strict=True):
        order = best_first([Fraction(float(value)) for value in row])
        assert [int(row_ranks[index]) for index in order] == list(range(len(row) - 1, -1, -1))


@property_test
@given(
    st.data(),
    st.lists(
        st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.integers(0, 1000).map(lambda n: n / 1000),
        min_size=2,
        max_size=2,
    ),
)
def test_fusion_is_exact_so_ties_on_paper_are_ties(data: st.DataObject, lambdas: list[float]) -> None:
    num_neurons = data.draw(st.integers(1, 15))
    permutation = st.permutations(range(num_neurons))
    local = np.array([data.draw(permutation) for _ in lambdas])
    global_ = np.array([data.draw(permutation) for _ in lambdas])
    budget = data.draw(st.integers(1, num_neurons))
    chosen = top_k(fuse(local, global_, lambdas), [budget] * 2)
    for layer, lambda_ in enumerate(lambdas):
        weight = Fraction(str(lambda_))
        scores = [
            (1 - weight) * int(l) + weight * int(g)
            for l, g in zip(local[layer], global_[layer], strict=True)  # noqa: E741
        ]
        assert chosen[layer].tolist() == sorted(best_first(scores)[:budget])


def test_a_tie_that_floating_point_would_break() -> None:
    local, global_ = np.array([[1, 0]]), np.array([[5, 14]])
    assert (1 - 0.1) * 1 + 0.1 * 5 < 0.1 * 14  # on paper 9/10 + 5/10 = 14/10: the lower index wins
    assert top_k(fuse(local, global_, [0.1]), [1])[0].tolist() == [0]


def test_lambda_zero_and_one_are_the_two_rankings() -> None:
    local, global_ = np.array([[2, 0, 1]] * 2), np.array([[0, 1, 2]] * 2)
    fused = fuse(local, global_, [0.0, 1.0])
    assert fused.tolist() == [[2, 0, 1], [0, 1, 2]]


def test_chosen_indices_are_ascending_int32_and_read_only() -> None:
    chosen = top_k(np.array([[5, 1, 9, 9], [0, 0, 0, 0]]), [2, 3])
    assert [indices.tolist() for indices in chosen] == [[2, 3], [0, 1, 2]]
    assert all(indices.dtype == np.int32 for indices in chosen)
    with pytest.raises(ValueError, match="read-only"):
        chosen[0][0] = 1


def test_share_within_top_k() -> None:
    reference = np.array([[3, 2, 1, 0], [0, 1, 2, 3]])
    chosen = (np.array([0, 3], np.int32), np.array([2], np.int32))
    assert share_within_top_k(chosen, reference) == 1 / 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_without_a_rank_are_refused_naming_the_layer(value: float) -> None:
    values = np.ones((3, 2), np.float32)
    values[1, 0] = values[2, 1] = value
    with pytest.raises(ValueError, match=r"layer\(s\) 1, 2 contain NaN or infinity"):
        ranks(values)


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="expected float32 statistics, got float64"):
        ranks(np.ones((1, 2)))  # type: ignore[arg-type]


def test_scores_beyond_the_packed_key_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must lie in"):
        top_k(np.array([[1 << 40]]), [1])
    with pytest.raises(ValueError, match="scores must lie in"):
        top_k(np.array([[-1]]), [1])


def test_too_many_neurons_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_INDEX_BITS", 2)
    with pytest.raises(ValueError, match="at most 4 neurons per layer can be ranked, got 5"):
        top_k(np.array([[1, 2, 3, 4, 5]]), [1])


def test_the_largest_model_and_the_finest_lambda_fit_the_packed_key() -> None:
    num_neurons = 1 << 20
    local = np.arange(num_neurons, dtype=np.int32)[np.newaxis, :]
    fused = fuse(local, local[:, ::-1], [0.499999])
    assert top_k(fused, [2])[0].tolist() == [num_neurons - 2, num_neurons - 1]


@property_test
@given(st.data(), st.sampled_from([1, 1 << 20, 1 << 36]))
def test_top_k_of_small_and_large_scores_is_the_same_selection(data: st.DataObject, scale: int) -> None:
    num_neurons = data.draw(st.integers(1, 12))
    scores = np.array([[data.draw(st.integers(0, 9)) for _ in range(num_neurons)] for _ in range(2)])
    budgets = [data.draw(st.integers(0, num_neurons)) for _ in range(2)]
    chosen = top_k(scores * scale, budgets)
    for row, indices, budget in zip(scores, chosen, budgets, strict=True):
        assert indices.tolist() == sorted(best_first([Fraction(int(score)) for score in row])[:budget])


@pytest.mark.parametrize("budgets", [[3], [1, 1], [-1]])
def test_budgets_that_cannot_be_are_refused(budgets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected 1 budgets in \[0, 2\]"):
        top_k(np.array([[0, 1]]), budgets)
