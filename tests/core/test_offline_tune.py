"""`glass tune` on tiny models: slopes of hard masks, objectives at equal reads, runs that resume, refusal to write."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchjd.aggregation import Aggregator

from glass_core.errors import ConfigurationError
from glass_core.offline.calibrate.calibration import CalibrationRun
from glass_core.offline.calibrate.settings import CalibrationSettings
from glass_core.offline.calibrate.statistics import next_token_loss
from glass_core.offline.cli import main
from glass_core.offline.progress import SilentProgress
from glass_core.offline.tune import aggregators, objectives, search, static_tuning, tuning
from glass_core.offline.tune.aggregators import Combination
from glass_core.offline.tune.cascade import CascadeFfn, hard_mask, kernel
from glass_core.offline.tune.descent import Descent, DescentState
from glass_core.offline.tune.domains import DOMAINS, TuningText, split_texts
from glass_core.offline.tune.held_out import HeldOut, gains, improvement, is_better
from glass_core.offline.tune.importance import measure_importance
from glass_core.offline.tune.objectives import TextBatch, along_constant_reads, read_densely
from glass_core.offline.tune.offsets import FloatArray, log_thresholds, no_offsets, place
from glass_core.offline.tune.settings import TextSettings, TuningSettings
from glass_core.offline.tune.static_profile import profile_of
from glass_core.offline.tune.static_settings import StaticSettings
from glass_core.offline.tune.tuning import Outcome, TuningRun
from glass_core.offline.tune.workfolder import TuningFolder
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.cascade import StageTensors, run_cascade
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import GlobalStatistics, read_artifact, write_artifact
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from glass_core.text import load_text_processor
from tests.tiny_models import VOCAB_SIZE

TEXT = TextSettings(num_learning=2, num_stopping=1, num_deciding=1, message_length=6, answer_length=10)
STATIC = StaticSettings(num_steps=2, evaluate_every=1)
SETTINGS = TuningSettings(text=TEXT, num_steps=4, evaluate_every=2, rate=0.3, static=STATIC)


@pytest.fixture(scope="module")
def statistics(
    model: TorchModel, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GlobalStatistics]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASS_HOME", str(tmp_path_factory.mktemp("home")))
        settings = CalibrationSettings(source="null", num_sequences=3, sequence_length=12, num_held_out=1)
        text = load_text_processor(model_dir)
        path = tmp_path_factory.mktemp("artifact") / "tiny.safetensors"
        yield CalibrationRun(model, text, model_dir, "tiny", settings, SilentProgress()).execute(path)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))
    # answers of ten tokens never read what is asked to a thousandth
    monkeypatch.setattr(objectives, "_MAX_COMMON_ROUNDS", 2)


@pytest.fixture(scope="module")
def weights(statistics: GlobalStatistics) -> ScoreWeights:
    return statistics.refinement["sensitivity"].weights


@pytest.fixture(scope="module")
def batch(model: TorchModel, weights: ScoreWeights) -> TextBatch:
    rng = np.random.default_rng(3)
    texts = [
        TuningText("any", tuple(rng.integers(VOCAB_SIZE, size=4)), tuple(rng.integers(VOCAB_SIZE, size=size)))
        for size in (30, 41)
    ]
    return TextBatch(model, weights, [read_densely(model, text) for text in texts])


def logs_at(statistics: GlobalStatistics, sparsity: float) -> Tensor:
    table = statistics.refinement["sensitivity"]
    return torch.from_numpy(log_thresholds(table, no_offsets(table.num_layers), sparsity, 0.0))


def run_of(
    model: TorchModel, model_dir: Path, statistics: GlobalStatistics, settings: TuningSettings = SETTINGS
) -> TuningRun:
    return TuningRun(model, load_text_processor(model_dir), model_dir, statistics, settings, SilentProgress())


def test_slopes_of_hard_masks_are_those_of_soft_ones_put_through() -> None:
    generator = torch.Generator().manual_seed(0)
    z, up, down, weight = (torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(4))
    width = 0.3

    def straight(up_log: Tensor, down_log: Tensor) -> Tensor:
        up_margin, down_margin = up - up_log[:, None], down - down_log[:, None]
        soft_up, soft_down = torch.sigmoid(up_margin / width), torch.sigmoid(down_margin / width)
        gated, reached = (up_margin >= 0).double(), (down_margin >= 0).double()
        mask = gated * reached + (soft_up - soft_up.detach()) * reached + (soft_down - soft_down.detach()) * gated
        return (weight * z * mask).sum()

    logs = [torch.full((4,), value, dtype=torch.float64, requires_grad=True) for value in (0.1, -0.2)]
    expected = torch.autograd.grad(straight(*logs), logs)
    masked = z
    for values, log in zip((up, down), logs, strict=True):
        masked = hard_mask(masked, values - log.detach()[:, None], log, width)
    ours = torch.autograd.grad((weight * masked).sum(), logs)
    for left, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_a_hard_mask_passes_slopes_on_where_it_passes_values() -> None:
    values, margin = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    values.requires_grad_()
    masked = hard_mask(values, margin, torch.zeros(3, dtype=torch.float64), 0.3)
    assert torch.equal(masked, torch.where(margin >= 0, values, 0.0))
    (slopes,) = torch.autograd.grad(masked.sum(), values)
    assert torch.equal(slopes, (margin >= 0).double())


def test_the_kernel_is_the_derivative_of_the_soft_mask() -> None:
    margins, step = torch.linspace(-2, 2, 41, dtype=torch.float64), 1e-5
    numeric = (torch.sigmoid((margins + step) / 0.2) - torch.sigmoid((margins - step) / 0.2)) / (2 * step)
    torch.testing.assert_close(kernel(margins, 0.2), numeric, atol=1e-7, rtol=1e-6)


def test_read_slopes_tell_how_reads_answer_a_move_of_one_layers_thresholds(
    model: TorchModel, weights: ScoreWeights, statistics: GlobalStatistics
) -> None:
    x = torch.randn(4000, model.spec.hidden_size, generator=torch.Generator().manual_seed(1))
    rows, step = torch.zeros(len(x), dtype=torch.int64), 0.05
    scores = StageTensors.of_weights(weights, model.device)
    log_weights = StageTensors(scores.inputs.log(), scores.down.log())

    def ffn_at(stage: int, move: float) -> CascadeFfn:
        logs = logs_at(statistics, 0.4)[None].float().clone()
        logs[0, stage, 1] += move
        ffn = CascadeFfn(model, log_weights, logs, rows, width=0.05)
        ffn(1, x)
        return ffn

    for stage in range(len(STAGES)):
        numeric = float((ffn_at(stage, step).reads - ffn_at(stage, -step).reads) / (2 * step))
        # what skipped inputs do to the scores of neurons is not in the slope
        rel = 0.25 if STAGES[stage] == "inputs" else 0.1
        assert float(ffn_at(stage, 0.0).slopes[0, stage, 1]) == pytest.approx(numeric, rel=rel)
        assert numeric < 0


def test_the_differentiable_cascade_is_the_served_one(
    model: TorchModel, weights: ScoreWeights, statistics: GlobalStatistics
) -> None:
    """Outputs and reads, of two texts of 30 and 70 tokens under thresholds of their own, in one layer."""
    x = torch.randn(100, model.spec.hidden_size, generator=torch.Generator().manual_seed(6))
    text_of_row = torch.repeat_interleave(torch.arange(2), torch.tensor([30, 70]))
    logs = torch.stack([logs_at(statistics, sparsity) for sparsity in (0.3, 0.6)]).float()
    scores = StageTensors.of_weights(weights, model.device)
    ffn = CascadeFfn(model, StageTensors(scores.inputs.log(), scores.down.log()), logs, text_of_row, width=0.2)
    found = ffn(1, x)
    thresholds = logs[text_of_row, :, 1].exp().T
    z, kept = run_cascade(model.layers[1].ffn, model.spec.activation, x, scores.of_layer(1), thresholds)
    torch.testing.assert_close(found, model.ffn_output(1, z))
    read = kept.num_weights(model.spec.intermediate_size).double()
    # the other layers were not run, and read nothing
    all_weights = 3 * model.spec.intermediate_size * model.spec.hidden_size * model.spec.num_layers
    expected = [float(read[:30].mean()) / all_weights, float(read[30:].mean()) / all_weights]
    assert ffn.reads.tolist() == pytest.approx(expected, rel=1e-9)
    assert expected[0] > 1.3 * expected[1] > 0.0


def test_without_thresholds_everything_is_read_and_nothing_lost(batch: TextBatch, model: TorchModel) -> None:
    nothing = torch.full((len(STAGES), model.spec.num_layers), -torch.inf, dtype=torch.float64)
    measured = batch.differentiate(nothing, torch.zeros(2, dtype=torch.float64), 1.0, width=0.2)
    assert measured.kl.abs().max() < 1e-5
    assert measured.reads.tolist() == [1.0, 1.0]
    assert measured.gradients is not None
    assert not measured.gradients.any()


def test_texts_are_measured_where_their_reads_are_what_was_asked(
    batch: TextBatch, statistics: GlobalStatistics
) -> None:
    measured, shifts = batch.at_reads(logs_at(statistics, 0.5), torch.zeros(2, dtype=torch.float64), 0.55, width=0.25)
    # a text of 30 tokens has 7920 neurons in all layers
    assert measured.reads.tolist() == pytest.approx([0.55, 0.55], abs=2e-3)
    assert (shifts < 0).all()
    alone = batch.shifts_at_reads(logs_at(statistics, 0.5), torch.zeros(2, dtype=torch.float64), 0.55, width=0.25)
    assert torch.equal(alone, shifts)


def test_a_common_shift_gives_all_tokens_together_the_reads(
    batch: TextBatch, statistics: GlobalStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "_MAX_COMMON_ROUNDS", 16)
    logs = logs_at(statistics, 0.5)
    shift = batch.common_shift(logs, 0.0, 0.55, width=0.25)
    # both texts have 30 tokens
    read = batch.measure(logs, torch.full((2,), shift, dtype=torch.float64), 0.55, width=0.25).reads
    assert float(read.mean()) == pytest.approx(0.55, abs=3e-3)
    assert abs(float(read[0] - read[1])) > 1e-3


def test_gradients_and_values_of_a_text_do_not_depend_on_the_others(
    model: TorchModel, weights: ScoreWeights, batch: TextBatch, statistics: GlobalStatistics
) -> None:
    logs, shifts = logs_at(statistics, 0.4), torch.tensor([0.1, -0.1], dtype=torch.float64)
    both = batch.differentiate(logs, shifts, 0.6, width=0.3)
    alone = TextBatch(model, weights, batch._texts[1:]).differentiate(logs, shifts[1:], 0.6, width=0.3)
    assert both.gradients is not None
    assert alone.gradients is not None
    torch.testing.assert_close(both.kl[1:], alone.kl, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(both.gradients[1:], alone.gradients, rtol=1e-2, atol=1e-3)


def test_gradients_at_constant_reads_vanish_for_a_common_move_and_for_what_reads_explain() -> None:
    generator = torch.Generator().manual_seed(2)
    slopes = -torch.rand(3, len(STAGES), 5, generator=generator, dtype=torch.float64)
    gradients = torch.randn(3, len(STAGES), 5, generator=generator, dtype=torch.float64)
    projected = along_constant_reads(gradients, slopes)
    torch.testing.assert_close(projected.sum(dim=(1, 2)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(along_constant_reads(7 * slopes, slopes), torch.zeros_like(slopes))
    assert torch.equal(along_constant_reads(gradients, torch.zeros_like(slopes)), gradients)


def test_offsets_move_thresholds_by_place_and_sparsities_map_to_places(statistics: GlobalStatistics) -> None:
    table = statistics.refinement["sensitivity"]
    offsets = np.array([[0.1], [0.2], [-0.3], [0.4]]) * np.ones((4, table.num_layers))
    moved = log_thresholds(table, offsets, 0.3, -1.0) - log_thresholds(table, no_offsets(table.num_layers), 0.3, 0.0)
    np.testing.assert_allclose(moved, np.array([[-0.1], [-0.7]]) * np.ones((2, table.num_layers)))
    places = [place(sparsity, (0.2, 0.35, 0.5)) for sparsity in (0.1, 0.2, 0.35, 0.5, 0.6)]
    assert places == pytest.approx([-1, -1, 0, 1, 1])


@pytest.mark.parametrize("name", ["conicgrad", "mean", "upgrad"])
def test_aggregators_descend_on_all_objectives_that_agree(name: str) -> None:
    jacobian = np.random.default_rng(0).uniform(0.1, 1, (6, 4))
    combination = Combination(name, [])
    assert (jacobian @ combination.combine(jacobian) > 0).all()
    assert np.isfinite(combination.state).all()


def test_an_aggregator_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Aggregator:
        raise ImportError("install torchjd[cagrad]")

    monkeypatch.setattr(aggregators, "AGGREGATORS", {"cagrad": missing})
    with pytest.raises(ConfigurationError, match=r"'cagrad' needs a package that is not installed: install torchjd"):
        Combination("cagrad", [])


def test_an_unknown_aggregator_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one of conicgrad, mean, cagrad, upgrad, got 'best'"):
        Combination("best", [])


def test_texts_are_split_evenly_by_domain() -> None:
    texts = [TuningText(domain.name, (1,), (index,)) for domain in DOMAINS for index in range(4)]
    parts = split_texts(texts, TEXT)
    assert [text.answer for text in parts.learning] == [(0,), (1,)] * len(DOMAINS)
    assert [text.answer for text in parts.deciding] == [(3,)] * len(DOMAINS)
    assert [text.domain for text in parts.stopping] == [domain.name for domain in DOMAINS]


def test_the_descent_lowers_the_objectives_it_descends_on(batch: TextBatch, statistics: GlobalStatistics) -> None:
    table = statistics.refinement["sensitivity"]
    state = DescentState.begin(table.num_layers, 1, 3, len(batch))
    descent = Descent(table, [batch], replace(SETTINGS, num_steps=12, aggregator="mean"))
    for _ in range(12):
        descent.step(state)
    losses = np.log(np.array(state.losses))
    assert losses[-3:].mean() < losses[0].mean()
    assert np.abs(state.offsets).max() > 0.05


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    model: TorchModel, model_dir: Path, statistics: GlobalStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(model, model_dir, statistics)
    whole = run.execute(TuningFolder("whole"))
    step = Descent.step

    def interrupted(self: Descent, state: DescentState) -> None:
        if state.num_steps == 3:
            raise KeyboardInterrupt
        step(self, state)

    monkeypatch.setattr(Descent, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.execute(TuningFolder("resumed"))
    monkeypatch.setattr(Descent, "step", step)
    resumed = run.execute(TuningFolder("resumed"))
    assert resumed.to_json_object(SETTINGS) == whole.to_json_object(SETTINGS)
    assert len(whole.state.descent.losses) == SETTINGS.num_steps
    assert [item.num_steps for item in whole.state.evaluations] == [0, 2, 4]


def test_a_run_that_no_longer_gains_stops(model: TorchModel, model_dir: Path, statistics: GlobalStatistics) -> None:
    settings = replace(SETTINGS, num_steps=40, evaluate_every=1, patience=1, rate=1.0)
    outcome = run_of(model, model_dir, statistics, settings).execute(TuningFolder("stops"))
    assert outcome.state.descent.num_steps < 40
    assert outcome.state.evaluations[-1].num_steps == outcome.state.num_best_steps + 1


def test_tuned_wins_only_without_losing_at_any_sparsity() -> None:
    rng = np.random.default_rng(0)
    default = HeldOut(rng.uniform(0.1, 2.0, (2, 20)), rng.integers(10, 90, 20).astype(np.float64), np.zeros((2, 20)))

    def changed(factors: FloatArray) -> HeldOut:
        return replace(default, kl=default.kl * factors)

    better = changed(rng.normal(0.9, 0.02, (2, 20)))
    assert is_better(better, default)
    assert not is_better(default, default)
    assert not is_better(changed(np.array([[0.5], [1.01]])), default)
    assert not is_better(changed(rng.normal(0.99, 0.4, (2, 20)).clip(0.2)), default)


def test_gains_are_of_the_mean_over_tokens_and_paired() -> None:
    default = HeldOut(np.array([[0.1, 2.0], [1.0, 3.0]]), np.array([30.0, 10.0]), np.zeros((2, 2)))
    tuned = replace(default, kl=default.kl * 0.8)
    for gain in gains(tuned, default):
        assert (gain.value, gain.low, gain.high) == pytest.approx([-np.log(0.8)] * 3)
    assert default.by_sparsity() == pytest.approx([0.575, 1.5])
    assert improvement(tuned, default) == pytest.approx(-np.log(0.8))


def test_the_tuned_artifact_can_be_read_and_is_the_same_twice(
    model: TorchModel,
    model_dir: Path,
    statistics: GlobalStatistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tuning, "is_better", lambda tuned, default: True)
    monkeypatch.setattr(static_tuning, "is_better", lambda tuned, default: False)
    run = run_of(model, model_dir, statistics)
    paths = [tmp_path / name for name in ("first.safetensors", "second.safetensors")]
    for path in paths:
        folder = TuningFolder(path.stem)
        write_artifact(path, run.tuned_statistics(run.execute(folder), folder, "glass tune tiny"))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = read_artifact(paths[0])
    default, tuned = (found.refinement[name] for name in ("sensitivity", "tuned"))
    assert np.array_equal(default.sparsities, tuned.sparsities)
    assert not np.allclose(default.thresholds, tuned.thresholds)
    assert found.profiles["tuned"].prune_weights == found.profiles["sensitivity"].prune_weights
    assert found.manifest.corpus["tuning_command"] == "glass tune tiny"
    assert not np.allclose(default.weights.down, tuned.weights.down)
    assert "tuned" not in found.expected_kl
    assert main(["inspect", str(paths[0])]) == 0
    assert "sensitivity up to sparsity 0.7, tuned up" in " ".join(capsys.readouterr().out.split())


def test_where_only_the_static_half_wins_refinement_is_the_measured_one(
    model: TorchModel, model_dir: Path, statistics: GlobalStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "is_better", lambda tuned, default: False)
    run, folder = run_of(model, model_dir, statistics), TuningFolder("static")
    outcome = run.execute(folder)
    best = outcome.static.state.parameters
    won = replace(outcome.static, state=replace(outcome.static.state, best=best))
    monkeypatch.setattr(static_tuning, "is_better", lambda tuned, default: True)
    found = run.tuned_statistics(replace(outcome, static=won), folder, "glass tune tiny")
    assert found.refinement["tuned"] is found.refinement["sensitivity"]
    assert found.profiles["tuned"] == profile_of(best)


WEIGHED = TuningText("any", (3, 1, 4), (1, 5, 9, 2))


def loss(model: TorchModel, ffn: Callable[[int, Tensor], Tensor]) -> float:
    """Of the text above with this FFN."""
    token_ids, attention = torch.tensor(WEIGHED.prompt + WEIGHED.answer), SequenceCache(model.spec)
    hidden = model.forward(token_ids, torch.arange(len(token_ids)), attention=attention, ffn=ffn)
    return float(next_token_loss(model.logits(hidden), token_ids, len(WEIGHED.prompt) + 1))


def test_weights_of_inputs_are_the_root_mean_square_of_the_slopes_through_gate_and_up(model: TorchModel) -> None:
    found = measure_importance(model, [WEIGHED], SilentProgress())
    layer, index, spec = 1, 5, model.spec

    def moved(step: float, token: int) -> float:
        def ffn(number: int, x: Tensor) -> Tensor:
            if number == layer:
                x[token, index] += step
            return model.ffn_output(number, model.ffn_activation(number, x))

        return loss(model, ffn)

    step = 0.05
    slopes = [(moved(step, token) - moved(-step, token)) / (2.0 * step) for token in (3, 4, 5)]
    expected = np.sqrt(np.mean(np.square(slopes)) * spec.hidden_size / (2 * spec.intermediate_size))
    assert found.weights.inputs[layer, index] == pytest.approx(expected, rel=0.02)


def test_weights_are_the_root_mean_square_of_the_loss_slopes(model: TorchModel) -> None:
    found = measure_importance(model, [WEIGHED], SilentProgress())
    layer, neuron = 1, 3

    def moved(step: float, token: int) -> float:
        def ffn(number: int, x: Tensor) -> Tensor:
            z = model.ffn_activation(number, x)
            if number == layer:
                z[token, neuron] += step
            return model.ffn_output(number, z)

        return loss(model, ffn)

    step = 0.5
    slopes = [(moved(step, token) - moved(-step, token)) / (2.0 * step) for token in (3, 4, 5)]
    assert found.weights.down[layer, neuron] == pytest.approx(np.sqrt(np.mean(np.square(slopes))), rel=0.02)
    assert found.typical_score > 0.0


def command(model_dir: Path, statistics: GlobalStatistics, tmp_path: Path) -> tuple[list[str], Path]:
    artifact, output = tmp_path / "measured.safetensors", tmp_path / "out.safetensors"
    write_artifact(artifact, statistics)
    steps = ["--steps", "2", "--static-steps", "3"]
    return ["tune", str(model_dir), "--artifact", str(artifact), "--output", str(output), *steps], output


@pytest.mark.parametrize("wins", [True, False])
def test_the_command_writes_curves_always_and_the_artifact_only_when_tuned_wins(
    model_dir: Path, statistics: GlobalStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wins: bool
) -> None:
    monkeypatch.setattr(TextSettings, "__init__", _small)
    monkeypatch.setattr(tuning, "is_better", lambda tuned, default: wins)
    monkeypatch.setattr(static_tuning, "is_better", lambda tuned, default: False)
    words, output = command(model_dir, statistics, tmp_path)
    assert main(words) == (0 if wins else 1)
    assert output.is_file() == wins
    assert output.with_suffix(".png").stat().st_size > 1000
    result = json.loads(output.with_suffix(".json").read_text())
    assert result["deciding"]["tuned_wins"] == wins
    assert not result["static"]["deciding"]["tuned_wins"]
    assert len(result["learning_kl"]) == 2
    assert result["command"].startswith(
        "glass tune llama --seed 0 --sparsities 0.2 0.35 0.5 --steps 2 --static-steps 3"
    )


def _small(settings: TextSettings, seed: int) -> None:
    for name in TextSettings.__slots__:
        object.__setattr__(settings, name, seed if name == "seed" else getattr(TEXT, name))


def test_artifacts_without_thresholds_and_sparsities_out_of_reach_are_refused(
    model: TorchModel, model_dir: Path, statistics: GlobalStatistics
) -> None:
    with pytest.raises(ConfigurationError, match="no refinement thresholds to tune"):
        run_of(model, model_dir, replace(statistics, refinement={}, expected_kl={})).execute(TuningFolder("none"))
    with pytest.raises(ConfigurationError, match=r"no thresholds for 0\.8"):
        far = replace(SETTINGS, sparsities=(0.2, 0.8))
        run_of(model, model_dir, statistics, far).execute(TuningFolder("far"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsities": (0.3,)}, "at least 2, ascending"),
        ({"sparsities": (0.5, 0.2)}, "at least 2, ascending"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"rate": 0.0}, r"rate must lie in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TuningSettings(**change)


def test_an_outcome_without_a_gain_keeps_the_table(
    model: TorchModel, model_dir: Path, statistics: GlobalStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "improvement", lambda tuned, default: 0.0)
    outcome: Outcome = run_of(model, model_dir, statistics).execute(TuningFolder("still"))
    assert not outcome.offsets.any()
