"""Local statistics: their definition, additivity, and what must not matter to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.sparsity.local_stats import LocalStatistics
from tests.core.sparsity_samples import make_activations, property_test


def test_definition_token_by_token() -> None:
    z = make_activations(0, num_tokens=3)
    statistics = LocalStatistics.from_activations(z)
    l1 = np.zeros(z.shape[::2])
    l2 = np.zeros(z.shape[::2])
    for layer in range(z.shape[0]):
        for token in z[layer].astype(np.float64):
            normalized = token / np.linalg.norm(token)
            l1[layer] += np.abs(normalized) / 3
            l2[layer] += normalized**2
    np.testing.assert_allclose(statistics.l1(), l1, rtol=1e-6)
    np.testing.assert_allclose(statistics.l2(), np.sqrt(l2), rtol=1e-6)
    assert statistics.l1().dtype == statistics.l2().dtype == np.float32


@property_test
@given(seed=st.integers(0, 1000), num_tokens=st.integers(1, 12), data=st.data())
def test_chunks_add_up_to_the_whole(seed: int, num_tokens: int, data: st.DataObject) -> None:
    z = make_activations(seed, num_tokens)
    cuts = sorted(data.draw(st.sets(st.integers(1, num_tokens))))
    total = LocalStatistics.zeros(z.shape[0], z.shape[2])
    for start, stop in zip([0, *cuts], [*cuts, num_tokens], strict=True):
        total = total + LocalStatistics.from_activations(z[:, start:stop])
    whole = LocalStatistics.from_activations(z)
    assert total.num_tokens == whole.num_tokens == num_tokens
    np.testing.assert_allclose(total.l1(), whole.l1(), rtol=1e-5)
    np.testing.assert_allclose(total.l2(), whole.l2(), rtol=1e-5)


@property_test
@given(seed=st.integers(0, 1000), exponent=st.integers(-100, 100))
def test_rescaling_activations_changes_no_bit(seed: int, exponent: int) -> None:
    z = make_activations(seed, 2)
    plain, scaled = LocalStatistics.from_activations(z), LocalStatistics.from_activations(np.ldexp(z, exponent))
    np.testing.assert_array_equal(plain.sum_abs, scaled.sum_abs)
    np.testing.assert_array_equal(plain.sum_squares, scaled.sum_squares)


def test_an_all_zero_token_contributes_zero() -> None:
    z = make_activations(0, 2)
    z[:, 1] = 0
    statistics = LocalStatistics.from_activations(z)
    np.testing.assert_array_equal(statistics.sum_abs, LocalStatistics.from_activations(z[:, :1]).sum_abs)
    assert statistics.num_tokens == 2
    only_zeros = LocalStatistics.from_activations(np.zeros_like(z))
    assert not only_zeros.l1().any()
    assert not only_zeros.l2().any()


def test_no_tokens_are_zeros() -> None:
    empty = LocalStatistics.zeros(2, 5)
    assert (empty.l1().shape, empty.num_tokens) == ((2, 5), 0)
    assert not empty.l1().any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_activations_stay_visible(value: float) -> None:
    z = make_activations(0, 2)
    z[1, 0, 3] = value
    assert np.isnan(LocalStatistics.from_activations(z).l1()[1]).any()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"got shape \(2, 5\)"):
        LocalStatistics.from_activations(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"shapes \(1, 5\) and \(2, 5\)"):
        LocalStatistics.zeros(1, 5) + LocalStatistics.zeros(2, 5)
