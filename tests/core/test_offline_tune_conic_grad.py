"""ConicGrad: the direction's properties on random Jacobians, its degenerate cases, its state, torchjd's interface."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchjd import Stateful
from torchjd.aggregation import GramianWeightedAggregator

from glass_core.offline.tune.cone import (
    ConicCombination,
    Floats,
    conic_coefficients,
    dual_gradient,
    smallest_share,
    softmax,
)
from glass_core.offline.tune.conic_grad import ConicGrad, ConicGradWeighting

COSINES = st.floats(0, 1)
ENTRIES = st.floats(-1e3, 1e3, allow_subnormal=False)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 9))
JACOBIANS = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=ENTRIES))
DUALS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def weights_for(jacobian: Floats, generator: np.random.Generator) -> Floats:
    return softmax(generator.normal(scale=2, size=len(jacobian)))


def direction(jacobian: Floats, weights: Floats, c: float) -> Floats:
    d: Floats = conic_coefficients(jacobian @ jacobian.T, weights, c) @ jacobian
    return d


def direct_direction(jacobian: Floats, weights: Floats, c: float) -> Floats:
    """The same from the vectors themselves, as one would write it down; for gradients that are in no way degenerate."""
    mean = jacobian.mean(axis=0)
    weighted = weights @ jacobian
    e = mean / np.linalg.norm(mean)
    a = weighted @ e
    p = weighted - a * e
    if a >= c * np.linalg.norm(weighted):
        unit = weighted / np.linalg.norm(weighted)
    else:
        unit = c * e + math.sqrt(1 - c * c) * p / np.linalg.norm(p)
    d: Floats = np.linalg.norm(mean) * unit
    return d


@given(JACOBIANS, DUALS, COSINES)
def test_stays_in_the_cone_and_is_as_long_as_the_mean_gradient(
    jacobian: Floats, generator: np.random.Generator, c: float
) -> None:
    d = direction(jacobian, weights_for(jacobian, generator), c)
    mean = jacobian.mean(axis=0)
    length = np.linalg.norm(mean)
    assert d @ mean >= (c - 1e-6) * np.linalg.norm(d) * length
    assert np.linalg.norm(d) == pytest.approx(length, rel=1e-6)


@given(st.integers(1, 6), st.integers(7, 12), DUALS, COSINES)
def test_equals_the_direct_formula(k: int, n: int, generator: np.random.Generator, c: float) -> None:
    jacobian = generator.normal(size=(k, n)) * generator.uniform(0.1, 10, size=(k, 1))
    weights = weights_for(jacobian, generator)
    expected = direct_direction(jacobian, weights, c) if k > 1 else jacobian[0]
    np.testing.assert_allclose(direction(jacobian, weights, c), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(2, 5), DUALS, COSINES)
def test_no_other_direction_of_the_cone_is_better(k: int, generator: np.random.Generator, c: float) -> None:
    jacobian = generator.normal(size=(k, 7))
    weights = weights_for(jacobian, generator)
    mean = jacobian.mean(axis=0)
    e = mean / np.linalg.norm(mean)
    others = generator.normal(size=(200, 7))
    across = others - np.outer(others @ e, e)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosines = generator.uniform(c, 1, size=(200, 1))
    rivals = np.linalg.norm(mean) * (cosines * e + np.sqrt(1 - cosines**2) * across)
    weighted = weights @ jacobian
    assert weighted @ direction(jacobian, weights, c) >= (rivals @ weighted).max() - 1e-9


@given(JACOBIANS, DUALS)
def test_cosine_one_gives_the_mean_gradient(jacobian: Floats, generator: np.random.Generator) -> None:
    largest = np.abs(jacobian).max()
    d = direction(jacobian, weights_for(jacobian, generator), 1.0)
    np.testing.assert_allclose(d, jacobian.mean(axis=0), rtol=0, atol=1e-6 * largest)


@given(arrays(np.float64, st.tuples(st.just(1), st.integers(1, 9)), elements=ENTRIES), COSINES)
def test_one_objective_gives_its_gradient(jacobian: Floats, c: float) -> None:
    np.testing.assert_array_equal(direction(jacobian, np.ones(1), c), jacobian[0])


@given(JACOBIANS, DUALS, COSINES, st.integers(-40, 40))
def test_scaling_all_gradients_scales_the_direction(
    jacobian: Floats, generator: np.random.Generator, c: float, exponent: int
) -> None:
    jacobian = np.where(np.abs(jacobian) < 1e-3, 0, jacobian)  # so that no square underflows
    weights = weights_for(jacobian, generator)
    expected = 2.0**exponent * direction(jacobian, weights, c)
    np.testing.assert_array_equal(direction(2.0**exponent * jacobian, weights, c), expected)


@given(JACOBIANS, DUALS, COSINES)
def test_a_batch_gives_what_its_matrices_give_alone(jacobian: Floats, generator: np.random.Generator, c: float) -> None:
    jacobians = np.stack([jacobian, 2 * jacobian[::-1], np.zeros_like(jacobian)])
    weights = np.stack([weights_for(jacobian, generator) for _ in range(3)])
    together = conic_coefficients(jacobians @ jacobians.swapaxes(1, 2), weights, c)
    for one, its_weights, coefficients in zip(jacobians, weights, together, strict=True):
        alone = direction(one, its_weights, c)
        np.testing.assert_allclose(coefficients @ one, alone, rtol=1e-6, atol=1e-6 * np.abs(one).max())


DEGENERATE = {
    "all zero": ([[0.0, 0.0], [0.0, 0.0]], [0.3, 0.7]),
    "opposite, so that their mean vanishes": ([[1.0, 2.0], [-1.0, -2.0]], [0.3, 0.7]),
    "equal": ([[1.0, 2.0], [1.0, 2.0]], [0.3, 0.7]),
    "weighted sum against the mean": ([[3.0, 0.0], [-1.0, 0.0]], [0.1, 0.9]),
    "weighted sum vanishes": ([[3.0, 0.0], [-1.0, 0.0]], [0.25, 0.75]),
    "equal but for rounding": ([[1.0, 1.0], [1.0, 1.0 + 1e-15]], [0.3, 0.7]),
    "one zero, weighted sum along the mean": ([[0.0, 0.0], [1.0, 5.0]], [0.9, 0.1]),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_degenerate_gradients_give_their_mean(case: str, c: float) -> None:
    rows, weights = DEGENERATE[case]
    jacobian = np.array(rows)
    np.testing.assert_array_equal(direction(jacobian, np.array(weights), c), np.full(2, 0.5) @ jacobian)


def test_weighted_sum_across_the_mean_gives_the_edge_of_the_cone() -> None:
    jacobian = np.array([[2.0, 1.0], [0.0, -1.0]])  # mean (1, 0); weighted (0, -1) with all weight on the second
    d = direction(jacobian, np.array([0.0, 1.0]), 0.5)
    np.testing.assert_allclose(d, [0.5, -math.sqrt(0.75)], rtol=1e-12)


@given(st.integers(1, 5), DUALS, COSINES)
def test_dual_gradient_is_that_of_the_weighted_gain(k: int, generator: np.random.Generator, c: float) -> None:
    jacobian = generator.normal(size=(k, 6))
    gram = jacobian @ jacobian.T
    dual = generator.normal(size=k)
    coefficients = conic_coefficients(gram, softmax(dual), c)
    gains = torch.from_numpy(gram @ coefficients)
    logits = torch.from_numpy(dual).requires_grad_()
    (torch.softmax(logits, dim=0) @ gains).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    np.testing.assert_allclose(
        dual_gradient(gram, softmax(dual), coefficients), logits.grad.numpy(), rtol=1e-9, atol=1e-12
    )


def test_weights_move_towards_the_objective_that_gains_least() -> None:
    conic = ConicGrad(c=0.5, weight_step=0.1)
    conic(torch.tensor([[3.0, 0.0], [-1.0, 0.5]]))
    first, second = conic.gramian_weighting.dual
    assert second > first


def test_smallest_share_grows_with_the_rounding() -> None:
    assert smallest_share(torch.finfo(torch.float64).eps) == 1e-8
    assert smallest_share(torch.finfo(torch.float32).eps) == pytest.approx(1.19e-4, rel=0.01)


def jacobians(num: int, k: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(k, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(num)]


def test_aggregator_equals_the_numpy_form_over_many_steps() -> None:
    conic, combination = ConicGrad(c=0.6, weight_step=0.05), ConicCombination(0.6, 0.05)
    for jacobian in jacobians(20):
        array = jacobian.numpy()
        expected = combination.coefficients(array @ array.T) @ array
        np.testing.assert_allclose(conic(jacobian).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert combination.dual is not None
    np.testing.assert_allclose(conic.gramian_weighting.dual.numpy(), combination.dual, rtol=1e-12)


def test_weighting_needs_the_gramian_only() -> None:
    aggregator, weighting = ConicGrad(), ConicGradWeighting()
    for jacobian in jacobians(5):
        torch.testing.assert_close(weighting(jacobian @ jacobian.T) @ jacobian, aggregator(jacobian))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_type_of_the_jacobian(dtype: torch.dtype) -> None:
    single, double = ConicGrad(), ConicGrad()
    for jacobian in jacobians(3, dtype=dtype):
        d = single(jacobian)
        assert d.dtype == dtype
        torch.testing.assert_close(d, double(jacobian.double()).to(dtype))


def test_near_cancellation_in_float32_stays_in_the_cone() -> None:
    jacobian = torch.tensor([[1.0, 1e-3, 0.0], [-1.0, 1e-3, 2e-4]])
    d = ConicGrad(c=0.9)(jacobian)
    mean = jacobian.mean(dim=0)
    assert torch.cosine_similarity(d, mean, dim=0) >= 0.9 - 1e-6


def test_is_a_stateful_aggregator_of_torchjd() -> None:
    conic = ConicGrad(0.25, 0.01)
    assert isinstance(conic, GramianWeightedAggregator)
    assert isinstance(conic, Stateful)
    assert repr(conic) == "ConicGrad(c=0.25, weight_step=0.01)"


def test_reset_forgets_the_weights() -> None:
    conic, (first, second) = ConicGrad(weight_step=1.0), jacobians(2)
    fresh = conic(second)
    conic.reset()
    conic(first)
    assert not torch.equal(conic(second), fresh)
    conic.reset()
    assert conic.gramian_weighting.dual.numel() == 0
    assert torch.equal(conic(second), fresh)


def test_state_dict_continues_where_another_stopped() -> None:
    there, here, (first, second) = ConicGrad(weight_step=1.0), ConicGrad(weight_step=1.0), jacobians(2)
    here.load_state_dict(there.state_dict())
    there(first)
    here.load_state_dict(there.state_dict())
    assert torch.equal(here(second), there(second))


def test_has_no_gradient() -> None:
    assert not ConicGrad()(jacobians(1)[0].requires_grad_()).requires_grad


def test_another_number_of_objectives_needs_a_reset() -> None:
    conic = ConicGrad()
    conic(jacobians(1, k=3)[0])
    with pytest.raises(ValueError, match=r"reset\(\) first"):
        conic(jacobians(1, k=4)[0])
    conic.reset()
    conic(jacobians(1, k=4)[0])


@pytest.mark.parametrize(("c", "weight_step", "name"), [(1.1, 0, "c"), (-0.1, 0, "c"), (math.nan, 0, "c")])
def test_c_must_be_a_cosine(c: float, weight_step: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* expected a cosine"):
        ConicGrad(c, weight_step)


@pytest.mark.parametrize("weight_step", [-1.0, math.inf, math.nan])
def test_weight_step_must_be_a_finite_number(weight_step: float) -> None:
    with pytest.raises(ValueError, match=r"weight_step: .* expected a finite number"):
        ConicGrad(0.5, weight_step)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (0, 0)])
def test_gramian_must_be_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"gramian: shape .* expected \(K, K\)"):
        ConicGradWeighting()(torch.ones(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_gradients_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="gramian: not finite"):
        ConicGrad()(torch.tensor([[value, 1.0], [0.0, 1.0]], dtype=torch.float64))
