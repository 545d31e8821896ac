"""The static half of `glass tune` on a tiny model: budgets, soft masks and their slopes, runs that resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glass_core.errors import ConfigurationError
from glass_core.offline.divergence import token_kl
from glass_core.offline.progress import SilentProgress
from glass_core.offline.tune import static_tuning
from glass_core.offline.tune.domains import DOMAINS, TuningText, TuningTexts
from glass_core.offline.tune.held_out import HeldOut
from glass_core.offline.tune.offsets import FloatArray
from glass_core.offline.tune.settings import TextSettings, TuningSettings
from glass_core.offline.tune.static_descent import StaticSearch, StaticState, all_masks
from glass_core.offline.tune.static_masks import RankPair, hard_masks, parameter_gradients, soft_masks
from glass_core.offline.tune.static_objectives import StaticBatch, read_statically
from glass_core.offline.tune.static_profile import lambdas_of, parameters_of, profile_of, soft_budgets
from glass_core.offline.tune.static_settings import StaticSettings
from glass_core.offline.tune.static_tuning import StaticOutcome, StaticRun
from glass_core.offline.tune.workfolder import TuningFolder
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.budget import SENSITIVITY, TUNED, Profile, layer_budgets, sensitivity_profile
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.ranking import ranks
from tests.core.sparsity_samples import make_manifest, make_selector, property_test, random_scores, sparse
from tests.tiny_models import VOCAB_SIZE

STATIC = StaticSettings(num_steps=4, evaluate_every=2)
SETTINGS = TuningSettings(text=TextSettings(num_learning=2, num_stopping=1, num_deciding=1), static=STATIC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def statistics(model: TorchModel) -> GlobalStatistics:
    shape = (model.spec.num_layers, model.spec.intermediate_size)
    manifest = make_manifest(num_layers=shape[0], intermediate_size=shape[1], fingerprint=model.fingerprint)
    sensitivity = np.array([0.7, 0.03, 0.1], np.float32)
    return GlobalStatistics(
        manifest,
        random_scores(1, shape),
        random_scores(2, shape),
        sensitivity=sensitivity,
        profiles={SENSITIVITY: sensitivity_profile(sensitivity)},
    )


def draw_text(seed: int, domain: str = "any", size: int = 9) -> TuningText:
    rng = np.random.default_rng(seed)
    return TuningText(domain, *(tuple(rng.integers(3, VOCAB_SIZE, count).tolist()) for count in (5, size)))


@pytest.fixture(scope="module")
def texts() -> TuningTexts:
    parts = [
        tuple(draw_text(start + index, domain.name) for domain in DOMAINS for index in range(count))
        for start, count in ((0, 2), (50, 1), (90, 1))
    ]
    return TuningTexts(*parts)


@pytest.fixture(scope="module")
def batch(model: TorchModel, statistics: GlobalStatistics) -> StaticBatch:
    model_ranks = ranks(statistics.activation_l1)
    return StaticBatch(model, [read_statically(model, draw_text(7, size=size), model_ranks) for size in (20, 13)])


def start_of(statistics: GlobalStatistics) -> FloatArray:
    return parameters_of(statistics.profiles[SENSITIVITY])


def soft_of(batch: StaticBatch, parameters: FloatArray, density: float, temperature: float) -> Tensor:
    budgets, _ = soft_budgets(parameters, density, batch.texts[0].pair.prompt.shape[1])
    return torch.stack([soft_masks(text.pair, parameters, budgets, temperature).values for text in batch.texts])


parameter_arrays = st.integers(0, 1 << 30).map(
    lambda seed: np.random.default_rng(seed).normal(scale=np.random.default_rng(seed).uniform(0, 4), size=(2, 5))
)


@property_test
@given(parameter_arrays, st.floats(0.05, 0.95))
def test_budgets_have_a_constant_total_and_their_slopes_none(parameters: FloatArray, density: float) -> None:
    budgets, slopes = soft_budgets(parameters, density, 40)
    assert budgets.sum() == pytest.approx(density * 5 * 40, rel=1e-9)
    assert (budgets >= 1.0 - 1e-9).all()
    assert (budgets < 40.0).all()
    np.testing.assert_allclose(slopes.sum(axis=0), 0.0, atol=1e-9)
    hard = layer_budgets(density, profile_of(parameters), 40)
    assert sum(hard) == round(density * 200)
    np.testing.assert_allclose(hard, budgets, atol=1.1)


@property_test
@given(parameter_arrays)
def test_profiles_are_in_range_and_keep_what_parameters_say(parameters: FloatArray) -> None:
    profile = profile_of(parameters)
    assert profile.name == TUNED
    assert profile.lambdas is not None
    assert all(0.0 <= value <= 1.0 and round(100 * value) == pytest.approx(100 * value) for value in profile.lambdas)
    np.testing.assert_allclose(profile.lambdas, lambdas_of(parameters), atol=0.0051)
    assert np.mean(profile.prune_weights) == pytest.approx(1.0, abs=1e-3)
    again = profile_of(parameters_of(profile))
    np.testing.assert_allclose(again.prune_weights, profile.prune_weights, atol=1e-2)
    assert again.lambdas == profile.lambdas


def test_slopes_of_budgets_are_those_of_finite_differences() -> None:
    # the last layer's weight makes it give all that it can
    parameters, step = np.array([[0.0] * 4, [0.3, -0.5, 0.1, 4.0]]), 1e-6
    budgets, slopes = soft_budgets(parameters, 0.6, 50)
    assert budgets[3] == 1.0
    for layer in range(4):
        moved = parameters.copy()
        moved[1, layer] += step
        numeric = (soft_budgets(moved, 0.6, 50)[0] - budgets) / step
        np.testing.assert_allclose(slopes[:, layer], numeric, atol=1e-4)


def test_a_profile_without_lambdas_or_with_weights_of_zero_has_parameters() -> None:
    parameters = parameters_of(Profile("any", (0.0, 2.0), None))
    np.testing.assert_allclose(lambdas_of(parameters), 0.5)
    assert np.isfinite(parameters).all()
    assert np.isfinite(parameters_of(Profile("any", (0.0, 0.0), (0.0, 1.0)))).all()


def test_soft_masks_sum_to_the_budgets_and_approach_the_hard_ones() -> None:
    pair = RankPair(ranks(random_scores(3)), ranks(random_scores(4)))
    parameters = np.array([[0.4, -0.9, 0.0], [0.2, 0.0, -0.3]])
    budgets, _ = soft_budgets(parameters, 0.5, 40)
    for temperature in (0.2, 0.02):
        masks = soft_masks(pair, parameters, budgets, temperature)
        np.testing.assert_allclose(masks.values.sum(dim=1), budgets, rtol=1e-3)
        np.testing.assert_allclose(masks.by_budget.sum(dim=1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(masks.by_lambda.sum(dim=1), 0.0, atol=1e-4)
    hard = hard_masks(pair, profile_of(parameters), 0.5)
    sharp = soft_masks(pair, parameters, hard.sum(dim=1).double().numpy(), 1e-3).values
    assert (hard == (sharp > 0.5)).double().mean() > 0.98


def test_hard_masks_are_the_plan_of_the_selector(statistics: GlobalStatistics, model: TorchModel) -> None:
    local = LocalStatistics.from_activations(np.random.default_rng(0).normal(size=(3, 6, 88)).astype(np.float32))
    profile = profile_of(np.array([[0.7, -2.0, 0.1], [0.0, 0.5, -0.5]]))
    selector = make_selector(
        replace(statistics, profiles={TUNED: profile}), num_layers=3, intermediate_size=model.spec.intermediate_size
    )
    plan = selector.select(sparse(method="a_glass", profile=TUNED), local)
    assert plan is not None
    masks = hard_masks(RankPair(ranks(local.l1()), ranks(statistics.activation_l1)), profile, 0.5)
    for neurons, row in zip(plan.neurons, masks, strict=True):
        assert neurons.tolist() == row.nonzero()[:, 0].tolist()


def test_nothing_pruned_is_nothing_lost(batch: StaticBatch, model: TorchModel) -> None:
    everything = torch.ones(len(batch), model.spec.num_layers, model.spec.intermediate_size)
    assert batch.measure([everything]).abs().max() < 1e-5
    ((kl, _),) = batch.differentiate([everything])
    assert kl.abs().max() < 1e-5


def test_kl_of_a_text_is_that_of_its_packed_plan(
    batch: StaticBatch, model: TorchModel, statistics: GlobalStatistics
) -> None:
    masks = all_masks(batch, statistics.profiles[SENSITIVITY], [0.5])[0]
    text = batch.texts[1].dense

    def ffn(layer: int, x: Tensor) -> Tensor:
        return model.ffn_output(layer, model.ffn_activation(layer, x) * masks[1, layer])

    positions = torch.arange(text.start, text.start + len(text.token_ids))
    hidden = model.forward(text.token_ids, positions, attention=text.cache.fork(), ffn=ffn)
    dense, pruned = (torch.log_softmax(model.logits(states), dim=-1) for states in (text.hidden, hidden))
    expected = float(token_kl(dense, pruned).mean())
    assert float(batch.measure([masks])[0, 1]) == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_of_finite_differences_of_the_soft_loss(
    batch: StaticBatch, statistics: GlobalStatistics
) -> None:
    parameters = start_of(statistics) + np.array([[0.3, -0.4, 0.1], [0.1, -0.3, 0.0]])
    density, temperature, step = 0.5, 0.1, 0.02
    ((_, worth),) = batch.differentiate([soft_of(batch, parameters, density, temperature)])
    for number, text in enumerate(batch.texts):
        found = parameter_gradients(worth[number], text.pair, parameters, density, temperature)
        numeric = np.zeros_like(found)
        for place in np.ndindex(*found.shape):
            ends = []
            for sign in (1.0, -1.0):
                moved = parameters.copy()
                moved[place] += sign * step
                ends.append(float(batch.measure([soft_of(batch, moved, density, temperature)])[0, number]))
            numeric[place] = (ends[0] - ends[1]) / (2.0 * step)
        np.testing.assert_allclose(found, numeric, rtol=0.05, atol=0.02 * np.abs(numeric).max())
        # no layer gains neurons but from the others
        assert found[1].sum() == pytest.approx(0.0, abs=1e-5)


def test_the_descent_lowers_the_objectives_it_descends_on(batch: StaticBatch, statistics: GlobalStatistics) -> None:
    static = StaticSettings(num_steps=25, rate=0.2, evaluate_every=25)
    search = StaticSearch([batch], [batch], replace(SETTINGS, aggregator="mean", static=static))
    start = start_of(statistics) + np.array([[0.0] * 3, [1.5, -1.0, 0.0]])
    state = search.run(start, TuningFolder("descends"), SilentProgress())
    assert state.evaluations[-1].improvement > 0.02
    assert state.best is not None


@pytest.mark.parametrize("name", ["conicgrad", "mean", "cagrad", "upgrad"])
def test_every_aggregator_takes_a_step(batch: StaticBatch, statistics: GlobalStatistics, name: str) -> None:
    start = start_of(statistics)
    state = StaticState.begin(start)
    StaticSearch([batch], [batch], replace(SETTINGS, aggregator=name)).step(state)
    assert np.isfinite(state.parameters).all()
    assert 0.0 < np.abs(state.parameters - start).max() < 1.0


def run_of(model: TorchModel, statistics: GlobalStatistics, static: StaticSettings = STATIC) -> StaticRun:
    return StaticRun(model, statistics, replace(SETTINGS, static=static), SilentProgress())


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    model: TorchModel, statistics: GlobalStatistics, texts: TuningTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(model, statistics)
    whole = run.execute(texts, TuningFolder("whole"))
    step = StaticSearch.step

    def interrupted(self: StaticSearch, state: StaticState) -> None:
        if state.num_steps == 3:
            raise KeyboardInterrupt
        step(self, state)

    monkeypatch.setattr(StaticSearch, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.execute(texts, TuningFolder("resumed"))
    monkeypatch.setattr(StaticSearch, "step", step)
    resumed = run.execute(texts, TuningFolder("resumed"))
    assert resumed.to_json_object(SETTINGS) == whole.to_json_object(SETTINGS)
    assert resumed.state.to_json_object() == whole.state.to_json_object()
    assert [item.num_steps for item in whole.state.evaluations] == [0, 2, 4]
    assert len(whole.state.losses) == STATIC.num_steps
    result = whole.to_json_object(SETTINGS)
    assert result["learning_steps"] == [1.0, 3.0]
    np.testing.assert_allclose(result["learning_kl"][1], np.mean(whole.state.losses[2:4], axis=0))


def test_a_run_that_no_longer_gains_stops(
    model: TorchModel, statistics: GlobalStatistics, texts: TuningTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glass_core.offline.tune.static_descent.improvement", lambda tuned, default: 0.0)
    static = StaticSettings(num_steps=40, evaluate_every=1, patience=2)
    outcome = run_of(model, statistics, static).execute(texts, TuningFolder("stops"))
    assert outcome.state.num_steps == 2
    assert not outcome.wins
    measured = statistics.profiles[SENSITIVITY]
    assert outcome.profile == Profile(TUNED, measured.prune_weights, measured.lambdas)
    assert outcome.to_json_object(SETTINGS)["prune_weights"] == measured.prune_weights


@pytest.mark.parametrize("wins", [True, False])
def test_the_learned_profile_is_taken_only_where_it_wins(monkeypatch: pytest.MonkeyPatch, wins: bool) -> None:
    monkeypatch.setattr(static_tuning, "is_better", lambda tuned, default: wins)
    nothing = np.ones((3, 4))
    held_out = HeldOut(nothing, np.ones(4), nothing)
    measured, best = Profile(SENSITIVITY, (1.0, 3.0)), np.array([[0.5, -0.5], [0.0, 0.4]])
    state = replace(StaticState.begin(best), best=best)
    outcome = StaticOutcome(state, 2, measured, held_out, held_out)
    assert outcome.wins == wins
    assert outcome.profile == (profile_of(best) if wins else Profile(TUNED, (1.0, 3.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "static num_steps must be at least 1"),
        ({"rate": 0.0}, r"static rate and temperatures must lie in \(0, 1\]"),
        ({"temperatures": (0.1, 0.0)}, r"static rate and temperatures must lie in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        StaticSettings(**change)


def test_rate_and_temperature_fall() -> None:
    found = [StaticSettings(num_steps=10, rate=0.2, temperatures=(0.1, 0.025)).at(step) for step in (0, 5, 10)]
    assert found == [pytest.approx(pair) for pair in ((0.2, 0.1), (0.1, 0.05), (0.0, 0.025))]
