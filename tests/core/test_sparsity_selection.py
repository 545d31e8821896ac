"""PlanSelector: what can be served, what is refused, and what is reported."""

from typing import ClassVar

import numpy as np
import pytest

from glass_core.api import SparsityParams
from glass_core.errors import (
    ArtifactMismatchError,
    EngineFailureError,
    GlassError,
    InvalidRequestError,
    MissingStatisticsError,
)
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import Profile
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector
from glass_core.sparsity.selectors.a_glass import AGlass
from glass_core.sparsity.selectors.base import Need
from tests.core.sparsity_samples import (
    IMPACT,
    NUM_LAYERS,
    NUM_NEURONS,
    chosen,
    make_activations,
    make_local,
    make_selector,
    make_statistics,
    reference_top_k,
    sparse,
)


@pytest.fixture(scope="module")
def selector() -> PlanSelector:
    return make_selector(make_statistics())


# --- dense ---


@pytest.mark.parametrize(
    "params",
    [
        SparsityParams(),
        SparsityParams(sparsity=0.0, method="griffin", profile="sensitivity"),
        SparsityParams(sparsity=0.5, method="dense", lambda_=0.3),
        SparsityParams(sparsity=0.001, method="random"),  # rounds to nothing pruned
    ],
)
def test_dense_requests_have_no_plan_and_need_no_artifact(params: SparsityParams) -> None:
    selector = make_selector(None)
    selector.check(params)
    assert selector.budgets(params) is None
    assert selector.select(params, make_local()) is None
    assert selector.effective_lambda(params) is None


# --- lambda ---


def tuned(lambdas: tuple[float, ...] | None) -> GlobalStatistics:
    return make_statistics(profiles={"tuned": Profile("tuned", (0.0, 1.0, 2.0), lambdas)})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (sparse(), 0.5),
        (sparse(lambda_=0.25), 0.25),
        (sparse(lambda_=0.0, profile="tuned"), 0.0),
        (sparse(profile="tuned"), pytest.approx(0.3)),
        (sparse(method="griffin", lambda_=0.25), None),
        (sparse(method="dense"), None),
    ],
)
def test_effective_lambda(params: SparsityParams, expected: float | None) -> None:
    selector = make_selector(tuned((0.0, 0.0, 0.9)))
    assert selector.effective_lambda(params) == expected
    plan = selector.select(params, make_local())
    assert (None if plan is None else plan.lambda_) == expected


def test_a_profile_without_lambdas_uses_the_default() -> None:
    assert make_selector(tuned(None)).effective_lambda(sparse(profile="tuned")) == 0.5


def test_a_profile_has_its_own_lambda_in_every_layer() -> None:
    selector = make_selector(tuned((0.0, 1.0, 0.0)))
    mixed, local_only, global_only = (
        chosen(selector, sparse(profile="tuned", lambda_=value), make_local()) for value in (None, 0.0, 1.0)
    )
    assert mixed == [local_only[0], global_only[1], local_only[2]]
    assert len(mixed[0]) == NUM_NEURONS


# --- overlap ---


def test_global_overlap() -> None:
    statistics, local = make_statistics(), make_local()
    selector = make_selector(statistics)
    plan, same, alone = (
        chosen_selector.select(sparse(method=method), local)
        for chosen_selector, method in [
            (selector, "griffin"),
            (selector, "global_only"),
            (make_selector(None), "griffin"),
        ]
    )
    assert plan and same and alone
    shared = sum(
        len(set(kept.tolist()) & set(reference))
        for kept, reference in zip(plan.neurons, reference_top_k(statistics.activation_l1, plan.budgets), strict=True)
    )
    assert plan.global_overlap == shared / 60
    assert same.global_overlap == 1.0
    assert alone.global_overlap is None


# --- what can be served ---


def test_methods_and_profiles_with_a_full_artifact(selector: PlanSelector) -> None:
    assert selector.methods == ("dense", "a_glass", "global_only", "griffin", "i_glass", "magnitude", "random")
    assert selector.unavailable == {}
    assert selector.profiles == ("uniform", "sensitivity")
    assert selector.default_profile == "sensitivity"


def test_without_an_artifact() -> None:
    selector = make_selector(None)
    assert selector.methods == ("dense", "griffin", "magnitude", "random")
    assert selector.unavailable.keys() == {"a_glass", "i_glass", "global_only"}
    assert selector.profiles == ("uniform",)
    assert selector.default_profile == "uniform"


def test_without_impact_or_sensitivity() -> None:
    selector = make_selector(make_statistics(without=(*IMPACT, "sensitivity")))
    assert selector.unavailable == {"i_glass": "needs impact statistics: `glass calibrate MODEL` makes them"}
    assert selector.profiles == ("uniform",)
    assert selector.default_profile == "uniform"


def test_the_artifacts_own_profile_wins() -> None:
    own = Profile("sensitivity", (0.0, 0.0, 1.0))
    selector = make_selector(make_statistics(profiles={"sensitivity": own}))
    assert selector.budgets(sparse(sparsity=0.2, profile="sensitivity")) == (40, 40, 16)


@pytest.mark.parametrize(
    ("params", "error", "param", "message"),
    [
        (sparse(method="A_GLASS"), InvalidRequestError, "glass_method", "'A_GLASS'.*dense, a_glass, global_only"),
        (sparse(method="base"), InvalidRequestError, "glass_method", "unknown glass_method"),
        (sparse(method="os.path", sparsity=0.0), InvalidRequestError, "glass_method", "unknown glass_method"),
        (sparse(sparsity=0.96), InvalidRequestError, "glass_sparsity", r"\[0, 0.95\], got 0.96"),
        (sparse(sparsity=-0.1), InvalidRequestError, "glass_sparsity", "got -0.1"),
        (sparse(sparsity=float("nan")), InvalidRequestError, "glass_sparsity", "got nan"),
        (sparse(lambda_=1.1), InvalidRequestError, "lambda", r"\[0, 1\], got 1.1"),
        (sparse(lambda_=float("nan"), method="griffin"), InvalidRequestError, "lambda", "got nan"),
        (sparse(profile="best"), InvalidRequestError, "glass_profile", "'best'; known profiles: uniform"),
        (sparse(profile="sensitivity"), MissingStatisticsError, "glass_profile", "glass calibrate MODEL"),
        (sparse(method="a_glass"), MissingStatisticsError, "glass_method", "activation.*glass calibrate MODEL"),
        (sparse(method="i_glass"), MissingStatisticsError, "glass_method", "impact.*glass calibrate MODEL"),
    ],
)
def test_refused_requests_name_the_field(
    params: SparsityParams, error: type[GlassError], param: str, message: str
) -> None:
    selector = make_selector(None)
    for entry in (selector.check, selector.budgets, selector.effective_lambda):
        with pytest.raises(error, match=message) as caught:
            entry(params)
        assert isinstance(caught.value, InvalidRequestError | MissingStatisticsError)
        assert caught.value.param == param


# --- faults ---


def test_broken_prompt_statistics_fail_this_request(selector: PlanSelector) -> None:
    z = make_activations(0)
    z[2, 0, 0] = np.nan
    with pytest.raises(EngineFailureError, match=r"this prompt: statistics of layer\(s\) 2 contain NaN"):
        selector.select(sparse(method="griffin"), LocalStatistics.from_activations(z))


def test_missing_or_foreign_prompt_statistics_are_a_fault(selector: PlanSelector) -> None:
    with pytest.raises(ValueError, match="'a_glass' selects by the prompt, but its statistics cover no token"):
        selector.select(sparse(), LocalStatistics.zeros(NUM_LAYERS, NUM_NEURONS))
    with pytest.raises(ValueError, match=r"shape \(3, 40\), got \(3, 41\)"):
        selector.select(sparse(), LocalStatistics.zeros(NUM_LAYERS, NUM_NEURONS + 1))


def test_an_artifact_of_another_size_is_refused() -> None:
    with pytest.raises(ArtifactMismatchError, match="the artifact has 3 layers of 40 neurons, the model 4 of 40"):
        make_selector(make_statistics(), num_layers=4)


def test_a_method_must_score_and_declare_what_it_uses() -> None:
    class Silent:
        needs: ClassVar[frozenset[Need]] = frozenset()
        fuses: ClassVar[bool] = False

        def prompt_scores(self, prompt: object) -> None:
            return None

        def model_scores(self, model: object) -> None:
            return None

    class Undeclared(AGlass):
        needs: ClassVar[frozenset[Need]] = frozenset()

    selector = make_selector(None, selectors={"silent": Silent(), "undeclared": Undeclared()})
    with pytest.raises(AssertionError, match="'silent' scores nothing"):
        selector.select(sparse(method="silent"), make_local())
    with pytest.raises(AssertionError, match="does not declare"):
        selector.select(sparse(method="undeclared"), make_local())


def test_a_plan_is_identified_by_object(selector: PlanSelector) -> None:
    plans = {selector.select(sparse(), make_local()) for _ in range(2)}
    assert len(plans) == 2
    assert all(isinstance(plan, SparsityPlan) for plan in plans)
