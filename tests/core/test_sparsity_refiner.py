"""Refined plans: what they hold, when they can be had, and what is said when not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.api import SparsityParams
from glass_core.errors import EngineFailureError, InvalidRequestError, MissingStatisticsError
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import Profile, uniform_profile
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import STAGES, Refinement
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.refiner import GATE_FLOOR
from tests.core.sparsity_samples import (
    NUM_LAYERS,
    NUM_NEURONS,
    make_activations,
    make_selector,
    make_statistics,
    property_test,
    random_scores,
    random_weights,
)

THRESHOLDS = np.full((2, len(STAGES), NUM_LAYERS), 2, np.float32)
TABLE = RefinementTable(np.array([0.2, 0.6], np.float32), THRESHOLDS, random_weights(21))
REFINED = SparsityParams(sparsity=0.4, refine=True)
MODEL_GATES = random_scores(41)


def refinable(**changes: Any) -> GlobalStatistics:
    values: dict[str, Any] = {
        "profiles": {"uniform": uniform_profile(NUM_LAYERS)},
        "refinement": {"uniform": TABLE},
    }
    return make_statistics(**(values | changes))


def with_gates(**changes: Any) -> GlobalStatistics:
    return refinable(mean_abs_gate=MODEL_GATES, **changes)


def prompt(seed: int = 0, num_tokens: int = 7) -> LocalStatistics:
    return LocalStatistics.from_activations(make_activations(seed, num_tokens), make_activations(seed + 1, num_tokens))


def scores(plan: SparsityPlan | None) -> Refinement:
    assert plan is not None and plan.refinement is not None
    return plan.refinement


def test_a_refined_plan_has_all_neurons_and_the_tables_thresholds() -> None:
    selector = make_selector(refinable())
    assert selector.budgets(REFINED) == (NUM_NEURONS,) * NUM_LAYERS
    plan = selector.select(REFINED, None)
    assert plan is not None
    assert plan.refinement is not None
    assert all(np.array_equal(neurons, np.arange(NUM_NEURONS)) for neurons in plan.neurons)
    assert plan.refinement.reads == pytest.approx(0.6)
    assert plan.sparsity == pytest.approx(0.4)
    assert plan.sparsity_requested == 0.4
    assert plan.lambda_ == 1.0 == selector.effective_lambda(REFINED)
    np.testing.assert_array_equal(plan.refinement.thresholds, THRESHOLDS[0])
    assert plan.refinement.weights is TABLE.weights


def test_plans_share_their_arrays() -> None:
    selector = make_selector(refinable())
    first, second = (selector.select(SparsityParams(sparsity=s, refine=True), None) for s in (0.2, 0.4))
    assert first is not None and second is not None
    assert first.refinement is not None and second.refinement is not None
    assert first.refinement.weights is second.refinement.weights
    assert first.neurons is second.neurons
    again = selector.select(SparsityParams(sparsity=0.2, refine=True), None)
    assert again is not None
    assert again is not first
    assert again.refinement is first.refinement


def test_every_profile_is_scored_by_its_own_tables_weights() -> None:
    tables = {"uniform": TABLE, "tuned": replace(TABLE, weights=random_weights(31))}
    profiles = {name: Profile(name, (1.0,) * NUM_LAYERS) for name in tables}
    selector = make_selector(refinable(profiles=profiles, refinement=tables))
    plans = {name: selector.select(replace(REFINED, profile=name), None) for name in tables}
    for name, plan in plans.items():
        assert plan is not None
        assert plan.refinement is not None
        assert plan.refinement.weights is tables[name].weights


def test_refined_plans_need_no_prompt_and_no_method_of_their_own() -> None:
    selector = make_selector(refinable(impact_abs=None, impact_rms=None))
    params = SparsityParams(sparsity=0.4, method="i_glass", refine=True)
    assert "i_glass" in selector.unavailable
    assert not selector.needs_statistics(params)
    assert selector.select(params, None) is not None
    static = SparsityParams(sparsity=0.4, method="griffin")
    assert selector.needs_statistics(static)
    with pytest.raises(ValueError, match="'griffin' needs statistics of the prompt, got none"):
        selector.select(static, None)


@property_test
@given(seed=st.integers(0, 1000), num_tokens=st.integers(2, 9), lambda_=st.floats(0, 1, exclude_max=True))
def test_a_lambda_of_its_own_mixes_the_prompts_gates_in(seed: int, num_tokens: int, lambda_: float) -> None:
    selector, params = make_selector(with_gates()), replace(REFINED, lambda_=lambda_)
    assert selector.needs_statistics(params) and selector.needs_gates(params)
    plan = selector.select(params, prompt(seed, num_tokens))
    mixed = scores(plan)
    assert plan is not None
    assert plan.lambda_ == lambda_ == selector.effective_lambda(params)
    mean = np.abs(make_activations(seed + 1, num_tokens)[:, 1:]).mean(axis=1)
    factor = (1 - lambda_) * mean / np.maximum(MODEL_GATES, GATE_FLOOR) + lambda_
    assert mixed.weights.up.dtype == np.float32
    np.testing.assert_allclose(mixed.weights.up, TABLE.weights.up * factor, rtol=1e-5)
    assert mixed.weights.inputs is TABLE.weights.inputs
    assert mixed.weights.down is TABLE.weights.down
    np.testing.assert_array_equal(mixed.thresholds, THRESHOLDS[0])
    assert plan.sparsity == pytest.approx(0.4)


@pytest.mark.parametrize("lambda_", [None, 1.0])
def test_lambda_one_is_the_default_and_needs_no_prompt(lambda_: float | None) -> None:
    params = replace(REFINED, lambda_=lambda_)
    for statistics in (with_gates(), refinable()):
        selector = make_selector(statistics)
        assert not selector.needs_statistics(params)
        assert not selector.needs_gates(params)
        plan = selector.select(params, None)
        assert plan is not None
        assert plan.lambda_ == 1.0
        assert scores(plan) is scores(selector.select(REFINED, None))
        assert scores(plan).weights is TABLE.weights


def test_gates_like_the_models_change_little_and_dead_ones_divide_by_no_zero() -> None:
    gates = MODEL_GATES.copy()
    gates[:, :5] = 0
    selector = make_selector(refinable(mean_abs_gate=gates))
    alike = LocalStatistics(gates, gates, 4, gates * np.float32(3))
    mixed = scores(selector.select(replace(REFINED, lambda_=0.25), alike)).weights.up
    alive = gates > GATE_FLOOR
    np.testing.assert_allclose(mixed[alive], TABLE.weights.up[alive], rtol=1e-5)
    np.testing.assert_allclose(mixed[:, :5], 0.25 * TABLE.weights.up[:, :5], rtol=1e-5)


def test_a_prompt_of_one_token_is_scored_by_the_models_gates() -> None:
    plan = make_selector(with_gates()).select(replace(REFINED, lambda_=0.25), prompt(num_tokens=1))
    assert plan is not None
    assert plan.lambda_ == 1.0
    assert scores(plan).weights is TABLE.weights


def test_static_requests_need_no_gates() -> None:
    selector = make_selector(with_gates())
    for params in (SparsityParams(sparsity=0.4, lambda_=0.25), SparsityParams(lambda_=0.25, refine=True)):
        assert not selector.needs_gates(params)


def test_a_lambda_needs_the_models_gates() -> None:
    with pytest.raises(
        MissingStatisticsError, match=r"lambda 0\.25 is unavailable with glass_refine: .*calibrate"
    ) as caught:
        make_selector(refinable()).check(replace(REFINED, lambda_=0.25))
    assert caught.value.param == "lambda"


def test_a_lambda_needs_the_prompts_gates() -> None:
    selector, params = make_selector(with_gates()), replace(REFINED, lambda_=0.25)
    with pytest.raises(ValueError, match=r"lambda 0\.25 with refinement needs statistics of the prompt, got none"):
        selector.select(params, None)
    with pytest.raises(ValueError, match="needs the prompt's gates"):
        selector.select(params, LocalStatistics.from_activations(make_activations(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_broken_gates_are_refused(value: float) -> None:
    local = prompt()
    assert local.sum_gates is not None
    local.sum_gates[1, np.argmax(TABLE.weights.up[1])] = value
    gates = np.full_like(MODEL_GATES, 1e-5)
    selector = make_selector(refinable(mean_abs_gate=gates))
    with pytest.raises(EngineFailureError, match="gates are NaN or infinite"):
        selector.select(replace(REFINED, lambda_=0.25), local)


def test_dense_requests_are_never_refined() -> None:
    selector = make_selector(None)
    for params in (SparsityParams(refine=True), SparsityParams(sparsity=0.4, method="dense", refine=True)):
        selector.check(params)
        assert not selector.needs_statistics(params)
        assert selector.select(params, None) is None


def test_what_can_be_refined_is_told() -> None:
    selector = make_selector(refinable())
    assert selector.refinable == {"uniform": 0.6}
    assert selector.refinement_problem is None


@pytest.mark.parametrize(
    ("statistics", "problem"),
    [
        (None, "there is no artifact"),
        (make_statistics(), "the artifact lacks thresholds"),
        (refinable(refinement={}), "the artifact lacks thresholds"),
    ],
)
def test_what_is_missing_is_told(statistics: GlobalStatistics | None, problem: str) -> None:
    selector = make_selector(statistics)
    assert selector.refinable == {}
    assert selector.refinement_problem is not None
    assert problem in selector.refinement_problem
    with pytest.raises(
        MissingStatisticsError, match=f"glass_refine is unavailable: {problem}.*glass calibrate"
    ) as caught:
        selector.check(REFINED)
    assert caught.value.param == "glass_refine"


def test_a_runner_that_cannot_refine_is_told() -> None:
    selector = make_selector(refinable(), runner_refines=False)
    assert selector.refinable == {}
    with pytest.raises(MissingStatisticsError, match="unavailable: this runner cannot refine"):
        selector.check(REFINED)


def test_other_profiles_and_sparsities_are_refused() -> None:
    selector = make_selector(refinable(sensitivity=np.ones(NUM_LAYERS, np.float32)))
    with pytest.raises(MissingStatisticsError, match=r"unavailable for glass_profile 'sensitivity'; .* for uniform"):
        selector.check(SparsityParams(sparsity=0.4, profile="sensitivity", refine=True))
    with pytest.raises(InvalidRequestError, match=r"from 0 to 0\.6, got 0\.7"):
        selector.check(SparsityParams(sparsity=0.7, refine=True))
