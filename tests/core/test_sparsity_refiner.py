"""Refined plans: what they hold, when they can be had, and what is said when not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glass_core.api import SparsityParams
from glass_core.errors import InvalidRequestError, MissingStatisticsError
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import Profile, uniform_profile
from glass_core.sparsity.refinement import STAGES
from glass_core.sparsity.refinement_table import RefinementTable
from tests.core.sparsity_samples import (
    NUM_LAYERS,
    NUM_NEURONS,
    make_selector,
    make_statistics,
    random_weights,
)

THRESHOLDS = np.full((2, len(STAGES), NUM_LAYERS), 2, np.float32)
TABLE = RefinementTable(np.array([0.2, 0.6], np.float32), THRESHOLDS, random_weights(21))
REFINED = SparsityParams(sparsity=0.4, refine=True)


def refinable(**changes: Any) -> GlobalStatistics:
    values: dict[str, Any] = {
        "profiles": {"uniform": uniform_profile(NUM_LAYERS)},
        "refinement": {"uniform": TABLE},
    }
    return make_statistics(**(values | changes))


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
    assert plan.lambda_ is None
    assert selector.effective_lambda(REFINED) is None
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


@pytest.mark.parametrize("lambda_", [0.0, 0.25, 1.0])
def test_a_lambda_has_nothing_to_weigh(lambda_: float) -> None:
    selector, params = make_selector(refinable()), replace(REFINED, lambda_=lambda_)
    for refuses in (selector.check, selector.budgets, lambda given: selector.select(given, None)):
        with pytest.raises(InvalidRequestError, match="leave out lambda, or set glass_refine to false") as caught:
            refuses(params)
        assert caught.value.param == "lambda"
    selector.check(replace(params, refine=False))


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
