"""Layer budgets: exact sums, bounds, proportion, and what a sensitivity profile means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.errors import ConfigurationError
from glass_core.sparsity.budget import (
    SENSITIVITY_FLOOR,
    Profile,
    layer_budgets,
    sensitivity_profile,
    uniform_profile,
)
from tests.core.sparsity_samples import property_test

densities = st.floats(0.0, 1.0)
weights = st.lists(
    st.floats(0.0, 10.0) | st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300, 1.7e308]), min_size=1, max_size=12
)


@property_test
@given(density=densities, prune_weights=weights, num_neurons=st.integers(1, 400))
def test_budgets_are_in_range_sum_exactly_and_follow_the_weights(
    density: float, prune_weights: list[float], num_neurons: int
) -> None:
    num_layers = len(prune_weights)
    budgets = layer_budgets(density, Profile("any", tuple(prune_weights)), num_neurons)
    assert sum(budgets) == max(num_layers, round(density * num_layers * num_neurons))
    assert all(1 <= budget <= num_neurons for budget in budgets)
    for weight, budget in zip(prune_weights, budgets, strict=True):
        for other_weight, other_budget in zip(prune_weights, budgets, strict=True):
            if weight < other_weight:
                assert budget >= other_budget


def test_a_tiny_weight_still_counts_among_tiny_ones() -> None:
    assert layer_budgets(0.5, Profile("extreme", (0.0, 1e-200, 1e200)), 100) == (100, 49, 1)


@property_test
@given(density=densities, num_layers=st.integers(1, 40), num_neurons=st.integers(1, 3000))
def test_uniform_layers_differ_by_at_most_one_neuron_lower_layers_keep_it(
    density: float, num_layers: int, num_neurons: int
) -> None:
    budgets = layer_budgets(density, uniform_profile(num_layers), num_neurons)
    assert max(budgets) - min(budgets) <= 1
    assert list(budgets) == sorted(budgets, reverse=True)


@property_test
@given(
    prune_weights=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=8),
    density=st.floats(0.8, 1.0),
)
def test_pruned_counts_are_proportional_within_one_neuron(prune_weights: list[float], density: float) -> None:
    num_neurons = 1000
    budgets = layer_budgets(density, Profile("any", tuple(prune_weights)), num_neurons)
    total = len(prune_weights) * num_neurons - sum(budgets)
    for weight, budget in zip(prune_weights, budgets, strict=True):
        assert abs((num_neurons - budget) - total * weight / sum(prune_weights)) < 1


def test_a_layer_of_weight_zero_stays_dense_while_others_can_give() -> None:
    profile = Profile("first dense", (0.0, 1.0, 1.0))
    assert layer_budgets(0.5, profile, 100) == (100, 25, 25)
    assert layer_budgets(0.1, profile, 100) == (28, 1, 1)


def test_what_a_full_layer_cannot_give_the_others_take_over() -> None:
    assert layer_budgets(0.5, Profile("steep", (1.0, 3.0, 100.0)), 101) == (88, 63, 1)


def test_full_density_prunes_nothing_and_weights_of_zero_are_equal() -> None:
    assert layer_budgets(1.0, uniform_profile(2), 10) == (10, 10)
    assert layer_budgets(0.5, Profile("none", (0.0, 0.0)), 10) == (5, 5)


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must lie in \[0, 1\]"):
        layer_budgets(density, uniform_profile(1), 4)


def test_sensitive_layers_keep_more_and_stay_nearly_dense() -> None:
    profile = sensitivity_profile(np.array([0.69, 0.03, 0.03, 0.11], np.float32))
    for density in (0.9, 0.7, 0.5):
        budgets = layer_budgets(density, profile, 1536)
        assert budgets[0] > budgets[3] > budgets[1]
        assert sum(budgets) == round(density * 4 * 1536)
    assert layer_budgets(0.5, profile, 1536)[0] > 0.85 * 1536


def test_exponent_sets_the_power_of_the_pruned_share() -> None:
    profile = sensitivity_profile([4.0, 1.0], exponent=0.5)
    assert profile.prune_weights[1] / profile.prune_weights[0] == pytest.approx(2.0)
    assert sensitivity_profile([4.0, 1.0], exponent=0.0).prune_weights == (1.0, 1.0)


def test_zero_sensitivities_are_floored_or_uniform() -> None:
    profile = sensitivity_profile([1.0, 0.0], exponent=1.0)
    assert profile.prune_weights == pytest.approx((1.0, 1 / SENSITIVITY_FLOOR))
    assert sensitivity_profile([0.0, 0.0]).prune_weights == (1.0, 1.0)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [float("nan")], [float("inf")], [[1.0]]])
def test_impossible_sensitivities_are_refused(values: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="non-negative sensitivity per layer"):
        sensitivity_profile(values)


def test_negative_exponent_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"exponent must be finite and >= 0, got -0\.6"):
        sensitivity_profile([1.0], exponent=-0.6)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (("", (1.0,), None), "needs a name"),
        (("p", (), None), "one prune weight per layer, got none"),
        (("p", (1.0, -1.0), None), "finite and >= 0, got -1"),
        (("p", (float("inf"),), None), "finite and >= 0, got inf"),
        (("p", (float("nan"),), None), "finite and >= 0, got nan"),
        (("p", (1.0, 1.0), (0.5,)), "2 prune weights but 1 lambdas"),
        (("p", (1.0,), (1.5,)), r"lambdas must lie in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_profiles_are_refused(
    profile: tuple[str, tuple[float, ...], tuple[float, ...] | None], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Profile(*profile)
