"""The method itself: the correctness tests that GLASS gives for free, and every selector against its definition."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.sparsity.local_stats import FloatArray, LocalStatistics
from glass_core.sparsity.selection import PlanSelector
from glass_core.sparsity.selectors import load_selectors
from glass_core.sparsity.selectors.a_glass import AGlass
from glass_core.sparsity.selectors.base import Need, Selector
from glass_core.sparsity.selectors.i_glass import IGlass
from tests.core.sparsity_samples import (
    NUM_LAYERS,
    NUM_NEURONS,
    chosen,
    make_activations,
    make_local,
    make_selector,
    make_statistics,
    property_test,
    random_scores,
    reference_top_k,
    sparse,
)

METHODS = ("a_glass", "global_only", "griffin", "i_glass", "magnitude", "random")
sparsities = st.floats(0.01, 0.95)


@pytest.fixture(scope="module")
def selector() -> PlanSelector:
    return make_selector(make_statistics())


def with_l2_local() -> Mapping[str, Selector]:
    return {**load_selectors(), "a_glass": AGlass(local="l2"), "i_glass": IGlass(local="l2")}


@property_test
@given(seed=st.integers(0, 10_000), sparsity=sparsities, num_tokens=st.integers(1, 4), duplicated=st.booleans())
def test_lambda_zero_with_l2_is_griffin_bit_for_bit(
    seed: int, sparsity: float, num_tokens: int, duplicated: bool
) -> None:
    """Against GRIFFIN's published recipe: normalize tokens, norm over tokens, top-k."""
    z = make_activations(seed, num_tokens)
    if duplicated:  # twins tie exactly
        z[..., 1::2] = z[..., ::2]
    local = LocalStatistics.from_activations(z)
    fused = make_selector(make_statistics(), selectors=with_l2_local())
    budgets = fused.budgets(sparse(sparsity=sparsity))
    assert budgets is not None
    normalized = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=2, keepdims=True)
    statistic = np.sqrt((normalized**2).sum(axis=1).astype(np.float32))
    expected = reference_top_k(statistic, budgets)
    assert chosen(fused, sparse(sparsity=sparsity, method="griffin"), local) == expected
    for method in ("a_glass", "i_glass"):
        assert chosen(fused, sparse(sparsity=sparsity, method=method, lambda_=0.0), local) == expected


@pytest.mark.parametrize("method", ["a_glass", "i_glass"])
def test_lambda_one_does_not_depend_on_the_prompt(selector: PlanSelector, method: str) -> None:
    plans = [chosen(selector, sparse(method=method, lambda_=1.0), make_local(seed)) for seed in range(3)]
    statistics = make_statistics()
    scores = statistics.activation_l1 if method == "a_glass" else statistics.impact_abs
    assert plans[0] == plans[1] == plans[2] == reference_top_k(scores, (20, 20, 20))


def test_global_only_is_a_glass_with_lambda_one(selector: PlanSelector) -> None:
    local = make_local()
    assert chosen(selector, sparse(method="global_only"), local) == chosen(selector, sparse(lambda_=1.0), local)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", ["one token", "all zero"])
def test_degenerate_prompts_get_a_valid_plan(selector: PlanSelector, method: str, prompt: str) -> None:
    z = make_activations(0, 1) if prompt == "one token" else np.zeros((NUM_LAYERS, 4, NUM_NEURONS), np.float32)
    neurons = chosen(selector, sparse(method=method), LocalStatistics.from_activations(z))
    for indices in neurons:
        assert indices == sorted(set(indices))
        assert len(indices) == 20
        assert 0 <= indices[0] <= indices[-1] < NUM_NEURONS


@property_test
@given(seed=st.integers(0, 1000), exponent=st.integers(-60, 60), method=st.sampled_from(METHODS))
def test_rescaling_all_z_leaves_the_plan_unchanged(seed: int, exponent: int, method: str) -> None:
    selector = make_selector(make_statistics())
    z = make_activations(seed)
    plain, scaled = (LocalStatistics.from_activations(values) for values in (z, np.ldexp(z, exponent)))
    assert chosen(selector, sparse(method=method), plain) == chosen(selector, sparse(method=method), scaled)


@property_test
@given(seed=st.integers(0, 1000), cut=st.integers(1, 6), method=st.sampled_from(METHODS))
def test_chunked_prefill_selects_as_a_whole_one(seed: int, cut: int, method: str) -> None:
    """Activations of one token per neuron sum exactly, so the plans must agree exactly."""
    rng = np.random.default_rng(seed)
    z = np.zeros((NUM_LAYERS, 7, NUM_NEURONS), np.float32)
    np.put_along_axis(z, rng.integers(0, NUM_NEURONS, size=(NUM_LAYERS, 7, 1)), 1.0, axis=2)
    chunks = LocalStatistics.from_activations(z[:, :cut]) + LocalStatistics.from_activations(z[:, cut:])
    selector = make_selector(make_statistics())
    whole = LocalStatistics.from_activations(z)
    assert chosen(selector, sparse(method=method), chunks) == chosen(selector, sparse(method=method), whole)


@property_test
@given(seed=st.integers(0, 1000), tenths=st.integers(0, 10), method=st.sampled_from(["a_glass", "i_glass"]))
def test_fusion_is_weighted_borda(seed: int, tenths: int, method: str) -> None:
    statistics, local = make_statistics(), make_local(seed)
    global_scores = statistics.activation_l1 if method == "a_glass" else statistics.impact_abs
    assert global_scores is not None

    def ranking(row: list[float]) -> list[int]:
        worst_first = sorted(range(len(row)), key=lambda index: (row[index], -index))
        return [worst_first.index(index) for index in range(len(row))]

    pairs = zip(local.l1().tolist(), global_scores.tolist(), strict=True)
    scores = np.array(
        [
            [(10 - tenths) * r_l + tenths * r_g for r_l, r_g in zip(ranking(a), ranking(b), strict=True)]
            for a, b in pairs
        ]
    )
    expected = reference_top_k(scores, (20, 20, 20))
    assert chosen(make_selector(statistics), sparse(method=method, lambda_=tenths / 10), local) == expected


@property_test
@given(
    method=st.sampled_from(METHODS),
    sparsity=sparsities,
    profile=st.sampled_from(["uniform", "sensitivity"]),
    seed=st.integers(0, 100),
)
def test_plans_keep_their_budgets_and_report_them(method: str, sparsity: float, profile: str, seed: int) -> None:
    selector = make_selector(make_statistics())
    params = sparse(method=method, sparsity=sparsity, profile=profile)
    plan = selector.select(params, make_local(seed))
    budgets = selector.budgets(params)
    if plan is None:
        assert budgets is None
        return
    assert plan.budgets == budgets
    assert sum(plan.budgets) == round((1 - sparsity) * NUM_LAYERS * NUM_NEURONS)
    assert abs(plan.sparsity - sparsity) <= 0.5 / (NUM_LAYERS * NUM_NEURONS) + 1e-12
    assert (plan.method, plan.profile, plan.sparsity_requested) == (method, profile, sparsity)
    for indices in plan.neurons:
        assert indices.dtype == np.int32
        assert np.all(np.diff(indices) > 0)
        assert indices[0] >= 0
        assert indices[-1] < NUM_NEURONS


def test_random_depends_on_the_seed_alone(selector: PlanSelector) -> None:
    plans = [
        chosen(selector, sparse(method="random", seed=seed), make_local(prompt))
        for seed, prompt in [(3, 0), (3, 1), (4, 0), (-1, 0), (2**64 - 1, 0)]
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[3] == plans[4]


def test_random_needs_no_prompt_statistics(selector: PlanSelector) -> None:
    empty = LocalStatistics.zeros(NUM_LAYERS, NUM_NEURONS)
    assert chosen(selector, sparse(method="random"), empty) == chosen(selector, sparse(method="random"), make_local())


def test_magnitude_follows_the_weights_and_reads_them_once() -> None:
    calls = []

    def magnitudes() -> FloatArray:
        calls.append(1)
        return random_scores(9)

    selector = make_selector(None, magnitudes=magnitudes)
    assert not calls
    for seed in range(2):
        neurons = chosen(selector, sparse(method="magnitude"), make_local(seed))
        assert neurons == reference_top_k(random_scores(9), (20, 20, 20))
    assert len(calls) == 1


def test_variants_choose_their_statistics() -> None:
    statistics = make_statistics()
    variants = {"a": AGlass(activation="l2"), "i": IGlass(impact="rms")}
    selector = make_selector(statistics, selectors=variants)
    local = make_local()
    assert chosen(selector, sparse(method="a", lambda_=1.0), local) == reference_top_k(
        statistics.activation_l2, (20, 20, 20)
    )
    assert chosen(selector, sparse(method="i", lambda_=1.0), local) == reference_top_k(
        statistics.impact_rms, (20, 20, 20)
    )


def test_every_method_declares_its_sides_truthfully(selector: PlanSelector) -> None:
    """`fuses` says whether lambda matters; a method that does not need local statistics ignores the prompt."""
    for name, method in load_selectors().items():
        params = [sparse(method=name, lambda_=value) for value in (0.0, 1.0)]
        moved = chosen(selector, params[0], make_local(0)) != chosen(selector, params[1], make_local(0))
        assert moved == method.fuses, name
        listens = chosen(selector, sparse(method=name), make_local(0)) != chosen(
            selector, sparse(method=name), make_local(1)
        )
        assert listens == (Need.LOCAL in method.needs), name
