"""`glass calibrate` on tiny models: statistics against an independent computation on HF, corpora, resuming."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from glass_core.config import glass_home
from glass_core.errors import ConfigurationError
from glass_core.models.spec import Activation
from glass_core.offline.calibrate import calibration as calibration_module
from glass_core.offline.calibrate import refinement_run
from glass_core.offline.calibrate.calibration import CalibrationRun, load_model
from glass_core.offline.calibrate.corpus import CorpusSequence, bos_token_id, chat_frame, make_corpus
from glass_core.offline.calibrate.refinement import SPARSITIES
from glass_core.offline.calibrate.sensitivity import layer_sensitivity, run_dense
from glass_core.offline.calibrate.settings import CalibrationSettings
from glass_core.offline.calibrate.statistics import activation_slopes, add_up, down_norms, measure_sequence
from glass_core.offline.cli import main
from glass_core.offline.generation import cache_for
from glass_core.offline.progress import SilentProgress
from glass_core.runners.torch_runner.ffn import ACTIVATIONS
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.artifact import GlobalStatistics, read_artifact
from glass_core.text import load_text_processor
from tests.tiny_models import BOS_TOKEN_ID, EOS_TOKEN_ID, VOCAB_SIZE, save_tiny_model

SETTINGS = CalibrationSettings(source="null", num_sequences=3, sequence_length=12, num_held_out=2)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))


def corpus_of(model: TorchModel, model_dir: Path, settings: CalibrationSettings) -> list[CorpusSequence]:
    cache = cache_for(model.spec, num_sequences=settings.total_sequences, num_tokens=128, bytes_per_value=4)
    text = load_text_processor(model_dir)
    return make_corpus(TorchRunner(model, cache), text, model_dir, settings, lambda: None)


def calibrate(model: TorchModel, model_dir: Path, output: Path, settings: CalibrationSettings) -> GlobalStatistics:
    text = load_text_processor(model_dir)
    return CalibrationRun(model, text, model_dir, "tiny", settings, SilentProgress()).execute(output)


class HfTrace:
    """gate, up, z of every layer, dl/dz and dl/d(gate before its activation), from HF's own modules through hooks."""

    def __init__(self, model_dir: Path, token_ids: tuple[int, ...], num_skipped: int) -> None:
        factory: Any = AutoModelForCausalLM
        hf = factory.from_pretrained(model_dir)
        self.layers = [SimpleNamespace() for _ in hf.model.layers]
        for layer, trace in zip(hf.model.layers, self.layers, strict=True):
            layer.mlp.act_fn.register_forward_hook(lambda _m, _i, out, t=trace: setattr(t, "gate", out[0].detach()))
            layer.mlp.gate_proj.register_forward_hook(self._keep_pre_gate(trace))
            layer.mlp.up_proj.register_forward_hook(lambda _m, _i, out, t=trace: setattr(t, "up", out[0].detach()))
            layer.mlp.down_proj.register_forward_pre_hook(self._keep_z(trace))
        ids = torch.tensor([token_ids])
        log_probs = hf(ids).logits[0].log_softmax(-1)
        first = max(num_skipped, 1)
        loss = -sum(log_probs[i - 1, token_ids[i]] for i in range(first, len(token_ids)))
        loss.backward()
        self.down_norm = [layer.mlp.down_proj.weight.norm(dim=0).detach() for layer in hf.model.layers]

    @staticmethod
    def _keep_pre_gate(trace: SimpleNamespace) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            trace.pre_gate = output

        return hook

    @staticmethod
    def _keep_z(trace: SimpleNamespace) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            inputs[0].retain_grad()
            trace.z = inputs[0]

        return hook


@pytest.mark.parametrize("num_skipped", [0, 4])
def test_statistics_match_an_independent_computation_on_hf(
    model: TorchModel, model_dir: Path, num_skipped: int
) -> None:
    ids = tuple(np.random.default_rng(1).integers(VOCAB_SIZE, size=11).tolist())
    sequence = CorpusSequence(ids, num_skipped)
    means = add_up([measure_sequence(model, sequence)], [sequence]).means()
    hf = HfTrace(model_dir, ids, num_skipped)
    for index, trace in enumerate(hf.layers):
        z, gradient = trace.z[0].detach()[num_skipped:], trace.z.grad[0][num_skipped:]
        unit = z / z.norm(dim=-1, keepdim=True)
        after_first = slice(max(num_skipped, 1), None)
        h = trace.pre_gate[0].detach()
        gate_slopes = trace.up * h.sigmoid() * (1 + h * (1 - h.sigmoid()))
        # the chain rule, where HF's own backward pass says what it is
        torch.testing.assert_close(trace.z.grad[0] * gate_slopes, trace.pre_gate.grad[0], rtol=1e-3, atol=1e-6)
        expected = {
            "activation_l1": unit.abs().mean(0),
            "activation_l2": unit.square().sum(0).sqrt(),
            "impact_abs": (z * gradient).abs().mean(0),
            "impact_rms": (z * gradient).square().mean(0).sqrt(),
            "mean_abs_up": trace.up[after_first].abs().mean(0),
            "gate_rms": trace.gate[after_first].square().mean(0).sqrt(),
            "gate_slope_rms": gate_slopes[after_first].square().mean(0).sqrt(),
            "mean_z": trace.z[0].detach()[after_first].mean(0),
            "mean_square_z": trace.z[0].detach()[after_first].square().mean(0),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(means[name][index], value.numpy(), rtol=2e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(down_norms(model), torch.stack(hf.down_norm).numpy(), rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_slopes_are_the_derivative_of_every_activation(activation: Activation) -> None:
    values, step = torch.linspace(-4, 4, 60, dtype=torch.float64).view(6, 10), 1e-5
    act = ACTIVATIONS[activation]
    with torch.no_grad():
        found, numeric = activation_slopes(act, values), (act(values + step) - act(values - step)) / (2 * step)
    torch.testing.assert_close(found, numeric, rtol=1e-6, atol=1e-8)
    assert not values.requires_grad


def test_sums_weigh_sequences_by_their_tokens(model: TorchModel) -> None:
    short, long = CorpusSequence((1, 5, 9)), CorpusSequence((1, 7, 8, 20, 30, 2, 4), num_skipped=2)
    sums = [measure_sequence(model, sequence) for sequence in (short, long)]
    pooled = add_up(sums, [short, long])
    alone = [add_up([part], [sequence]) for part, sequence in zip(sums, (short, long), strict=True)]
    assert (pooled.num_counted, pooled.num_moments) == (3 + 5, 2 + 5)
    expected = (alone[0].means()["activation_l1"] * 3 + alone[1].means()["activation_l1"] * 5) / 8
    np.testing.assert_allclose(pooled.means()["activation_l1"], expected, rtol=1e-5)


@pytest.mark.parametrize(("num_skipped", "first"), [(0, 1), (3, 3)])
def test_sensitivity_equals_an_uncached_computation(
    model: TorchModel, model_dir: Path, num_skipped: int, first: int
) -> None:
    sequence = CorpusSequence((1, 17, 40, 100, 7, 250, 3, 8), num_skipped)
    dense = run_dense(model, sequence)
    factory: Any = AutoModelForCausalLM
    hf = factory.from_pretrained(model_dir)
    ids = torch.tensor([sequence.token_ids])
    with torch.no_grad():
        reference = hf(ids).logits[0, first:].log_softmax(-1)
        for layer in range(model.spec.num_layers):
            kept = np.arange(layer, 88, 2, dtype=np.int32)
            mask = torch.ones(8, 88)
            mask[first:] = 0.0
            mask[first:, torch.from_numpy(kept)] = 1.0
            handle = hf.model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda _m, a, k=mask: (a[0] * k,))
            pruned = hf(ids).logits[0, first:].log_softmax(-1)
            handle.remove()
            expected = float((reference.exp() * (reference - pruned)).sum(-1).mean())
            assert layer_sensitivity(model, [dense], layer, kept) == pytest.approx(expected, rel=1e-3)
            everything = np.arange(88, dtype=np.int32)
            assert layer_sensitivity(model, [dense], layer, everything) == pytest.approx(0.0, abs=1e-6)


def test_null_corpus_starts_from_bos_and_fills_every_sequence(model: TorchModel, model_dir: Path) -> None:
    corpus = corpus_of(model, model_dir, SETTINGS)
    assert len(corpus) == 5
    assert all(sequence.token_ids[0] == BOS_TOKEN_ID and len(sequence.token_ids) == 12 for sequence in corpus)
    assert len({sequence.token_ids for sequence in corpus}) == 5
    assert corpus == corpus_of(model, model_dir, SETTINGS)
    other = CalibrationSettings(source="null", seed=1, num_sequences=3, sequence_length=12, num_held_out=2)
    assert corpus != corpus_of(model, model_dir, other)


def test_chat_corpus_follows_the_template_and_skips_its_prefix(model: TorchModel, model_dir: Path) -> None:
    settings = CalibrationSettings(source="chat", num_sequences=4, sequence_length=40, num_held_out=1)
    before, after = chat_frame(load_text_processor(model_dir))
    for sequence in corpus_of(model, model_dir, settings):
        ids = list(sequence.token_ids)
        assert ids[: len(before)] == before
        assert sequence.num_skipped == len(before)
        assert sequence.num_counted <= 40
        starts = [i for i in range(len(before), len(ids)) if ids[i : i + len(after)] == after]
        assert len(starts) >= 1
        message, answer = ids[len(before) : starts[0]], ids[starts[0] + len(after) :]
        assert EOS_TOKEN_ID not in message
        assert 4 <= len(message) <= 20
        assert len(answer) >= 4
        assert ids[sequence.first_decoded :] == answer


def test_file_corpus_takes_distinct_windows(model: TorchModel, model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 30, encoding="utf-8")
    settings = CalibrationSettings(source=str(path), num_sequences=3, sequence_length=16, num_held_out=1)
    corpus = corpus_of(model, model_dir, settings)
    assert [len(sequence.token_ids) for sequence in corpus] == [16] * 4
    too_much = CalibrationSettings(source=str(path), num_sequences=500, sequence_length=16)
    with pytest.raises(ConfigurationError, match=r"book.txt holds \d+ tokens; 504 sequences of 16 need 8064"):
        corpus_of(model, model_dir, too_much)


def test_two_runs_give_the_same_bytes(model: TorchModel, model_dir: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    statistics = calibrate(model, model_dir, first, SETTINGS)
    calibrate(model, model_dir, second, SETTINGS)
    assert first.read_bytes() == second.read_bytes()
    assert not any((glass_home() / "work").iterdir())
    assert statistics.manifest.fingerprint == model.fingerprint
    assert set(statistics.profiles) == {"uniform", "sensitivity"}
    assert statistics.manifest.corpus["num_tokens"] == 36
    assert statistics.manifest.corpus["refinement_source"] == "chat"
    assert set(statistics.refinement) == {"sensitivity"}
    assert statistics.refinement["sensitivity"].max_sparsity == 0.7
    assert read_artifact(first).manifest == statistics.manifest


@pytest.mark.parametrize("source", ["null", "chat"])
def test_thresholds_come_from_the_corpus_where_no_chats_can_or_need_be_drawn(tmp_path: Path, source: str) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama")
    if source == "null":
        (folder / "chat_template.jinja").unlink()
    settings = CalibrationSettings(source=source, num_sequences=2, sequence_length=12, num_held_out=1)
    statistics = calibrate(load_model(folder, "cpu"), folder, tmp_path / "artifact.safetensors", settings)
    corpus = statistics.manifest.corpus
    assert (corpus["refinement_source"], corpus["num_refinement_sequences"]) == (source, 2)


@pytest.mark.parametrize("stage", ["measure_sequence", "layer_sensitivity", "layer_errors", "measure_thresholds"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    model: TorchModel, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    calibrate(model, model_dir, whole, SETTINGS)
    module = refinement_run if stage in ("layer_errors", "measure_thresholds") else calibration_module
    genuine = getattr(module, stage)
    calls: Iterator[int] = iter(range(100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return genuine(*args)

    monkeypatch.setattr(module, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, model_dir, resumed, SETTINGS)
    assert not resumed.exists()
    calibrate(model, model_dir, resumed, SETTINGS)
    # nothing was measured twice: two calls before the interruption, the interrupted one, then only what was left
    totals = {"measure_sequence": SETTINGS.num_sequences, "measure_thresholds": len(SPARSITIES)}
    assert next(calls) == totals.get(stage, model.spec.num_layers) + 1
    assert resumed.read_bytes() == whole.read_bytes()


def test_command_line(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "artifact.safetensors"
    flags = ["--num-sequences", "2", "--sequence-length", "10", "--num-held-out", "1", "--output", str(output)]
    assert main(["calibrate", str(model_dir), "--source", "null", *flags]) == 0
    assert "20 tokens of source null" in capsys.readouterr().out
    command = read_artifact(output).manifest.command
    assert command == (
        "glass calibrate llama --source null --seed 0 --num-sequences 2 --sequence-length 10 --num-held-out 1"
    )


def test_a_template_gives_a_base_model_chats(tmp_path: Path) -> None:
    folder, artifact = save_tiny_model(tmp_path / "base", "llama"), tmp_path / "artifact.safetensors"
    (folder / "chat_template.jinja").unlink()
    template = tmp_path / "questions.jinja"
    template.write_text("{{ bos_token }}quick {{ messages[0].content }} dog", encoding="utf-8")
    flags = ["--num-sequences", "2", "--sequence-length", "10", "--num-held-out", "1", "--output", str(artifact)]
    assert main(["calibrate", str(folder), "--source", "chat", "--chat-template", str(template), *flags]) == 0
    manifest = read_artifact(artifact).manifest
    assert manifest.corpus["chat_template"] == "questions.jinja"
    assert manifest.corpus["expected_kl_source"] == "chat"
    assert manifest.command.endswith(" --chat-template questions.jinja")


def test_partial_results_belong_to_a_templates_content(tmp_path: Path) -> None:
    template = tmp_path / "questions.jinja"
    keys = set()
    for text in ("one", "two"):
        template.write_text(text, encoding="utf-8")
        keys.add(CalibrationSettings(source="chat", chat_template=str(template)).key("model"))
    assert len(keys | {CalibrationSettings(source="chat").key("model")}) == 3


def test_bad_settings_name_the_field(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(model_dir), "--source", "missing.txt"]) == 1
    assert "source must be null, chat or a text file, got 'missing.txt'" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="num_sequences must be at least 1, got 0"):
        CalibrationSettings(num_sequences=0)
    with pytest.raises(ConfigurationError, match="sequence_length must be at least 8, got 7"):
        CalibrationSettings(sequence_length=7)


def test_chat_needs_a_template_and_null_a_bos(tmp_path: Path, model: TorchModel) -> None:
    plain = save_tiny_model(tmp_path / "base", "llama")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match="no chat template; use --source null"):
        chat_frame(load_text_processor(plain))
    (plain / "config.json").write_text('{"bos_token_id": null, "eos_token_id": [7, 8]}', encoding="utf-8")
    assert bos_token_id(plain) == 7
    (plain / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="names no bos_token_id"):
        bos_token_id(plain)
    (plain / "chat_template.jinja").write_text("{{ messages[0].content }}{{ messages[0].content }}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="shows a message 2 times"):
        chat_frame(load_text_processor(plain))
