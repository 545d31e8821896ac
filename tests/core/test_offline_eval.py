"""`glass eval longform` on a tiny model: protocol, schema, dense and oracle rows, prompt files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError, InvalidRequestError, MissingStatisticsError
from glass_core.offline.cli import main
from glass_core.offline.evaluate.answers import Answer, encode_instruction
from glass_core.offline.evaluate.conditions import Sweep, evaluation_selectors
from glass_core.offline.evaluate.longform import predict_answer, run_dense
from glass_core.offline.evaluate.prompts import read_prompts
from glass_core.offline.evaluate.report import curves
from glass_core.offline.evaluate.scores import score_predictions
from glass_core.offline.flags import parse_floats, parse_names
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector
from glass_core.text import load_text_processor
from tests.core.prompt_file import write_lines
from tests.tiny_models import save_tiny_model

ROW_KEYS = [
    "runner", "dtype", "method", "sparsity", "lambda", "profile", "refine", "ppl", "ppl_interval", "kl", "kl_interval",
    "agreement", "agreement_interval", "ffn_reads", "num_tokens", "answers",
]  # fmt: skip
ANSWER = Answer(prompt=(1, 20, 30, 40, 50), token_ids=(60, 70, 80, 90, 100, 110))


def evaluate(model_dir: Path, prompts: Path, output: Path, *flags: str) -> dict[str, Any]:
    arguments = ["--prompts", str(prompts), "--max-new-tokens", "24", "--json", str(output), *flags]
    assert main(["eval", "longform", str(model_dir), *arguments]) == 0
    if "--plot" not in flags:
        assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


def selector_without_artifact() -> PlanSelector:
    return PlanSelector(
        num_layers=3,
        intermediate_size=88,
        statistics=None,
        magnitudes=lambda: np.ones((3, 88), np.float32),
        selectors=evaluation_selectors(),
    )


def test_result_file_plot_and_table(
    model_dir: Path, artifact: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plots" / "longform.png"
    methods = ("--methods", "griffin,a_glass,i_glass,oracle,dense", "--sparsities", "0.3,0.5", "--lambdas", "0.2,0.5")
    result = evaluate(
        model_dir, prompts, tmp_path / "out.json", *methods, "--artifact", str(artifact), "--plot", str(plot)
    )
    assert list(result) == ["conditions", "bootstrap", "dense", "rows"]
    assert result["conditions"]["artifact_corpus"]["source"] == "null"
    assert result["conditions"]["prompts"] == "prompts.jsonl"
    assert result["dense"]["num_answers"] == 4
    assert all(list(row) == ROW_KEYS for row in result["rows"])
    # griffin and oracle fuse nothing: one row per sparsity; dense has no sparsity
    assert [(row["method"], row["sparsity"], row["lambda"]) for row in result["rows"]] == [
        ("griffin", 0.3, None),
        ("griffin", 0.5, None),
        *[(method, s, weight) for method in ("a_glass", "i_glass") for s in (0.3, 0.5) for weight in (0.2, 0.5)],
        ("oracle", 0.3, None),
        ("oracle", 0.5, None),
        ("dense", 0.0, None),
    ]
    assert {row["num_tokens"] for row in result["rows"]} == {result["dense"]["num_tokens"]}
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "i_glass" in printed
    assert f"dense ppl {result['dense']['ppl']:.2f}" in printed
    assert list(curves(result["rows"])) == [
        "griffin", "a_glass λ 0.2", "a_glass λ 0.5", "i_glass λ 0.2", "i_glass λ 0.5", "oracle", "dense",
    ]  # fmt: skip


def test_dense_rows_equal_the_dense_model(model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    result = evaluate(model_dir, prompts, tmp_path / "out.json", "--methods", "dense,griffin", "--sparsities", "0,0.5")
    dense, unpruned, pruned = result["rows"]
    for row in (dense, unpruned):
        assert row["kl"] == pytest.approx(0.0, abs=1e-7)
        assert row["ppl"] == pytest.approx(result["dense"]["ppl"], rel=1e-6)
        assert (row["agreement"], row["ffn_reads"]) == (1.0, 1.0)
    assert pruned["kl"] > 0.01
    assert pruned["ffn_reads"] == 0.5


def test_knowing_the_answer_beats_chance_and_pruning_less_beats_pruning_more(
    model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    flags = ("--methods", "oracle,random", "--sparsities", "0.2,0.6")
    rows = evaluate(model_dir, prompts, tmp_path / "out.json", *flags)["rows"]
    kl = {(row["method"], row["sparsity"]): row["kl"] for row in rows}
    assert kl["oracle", 0.6] < kl["random", 0.6]
    assert kl["oracle", 0.2] < kl["oracle", 0.6]


def test_same_seed_same_result(model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    flags = ("--methods", "random", "--sparsities", "0.5", "--limit", "2")
    first, again, other = (
        evaluate(model_dir, prompts, tmp_path / f"{index}.json", *flags, "--seed", seed)
        for index, seed in enumerate(("3", "3", "4"))
    )
    assert [first[key] for key in ("dense", "rows")] == [again[key] for key in ("dense", "rows")]
    assert first["rows"] != other["rows"]


def test_scores_equal_hf_with_masked_neurons_after_a_dense_prompt(model: TorchModel, model_dir: Path) -> None:
    kept = tuple(np.arange(layer, 88, 3, dtype=np.int32) for layer in range(3))
    plan = SparsityPlan("griffin", "uniform", None, 0.66, 88, kept)
    reference = run_dense(model, ANSWER)
    predicted = predict_answer(model, reference, plan)
    score = score_predictions(predicted, reference.targets, 1.0 - plan.sparsity, dense=reference.log_probs)
    factory: Any = AutoModelForCausalLM
    hf = factory.from_pretrained(model_dir)
    answer = torch.tensor([ANSWER.token_ids])
    with torch.no_grad():
        dense = hf(torch.tensor([ANSWER.prompt + ANSWER.token_ids])).logits[0, 5:-1].log_softmax(-1)
        past = hf(torch.tensor([ANSWER.prompt]), use_cache=True).past_key_values
        for layer, neurons in zip(hf.model.layers, kept, strict=True):
            mask = torch.zeros(88)
            mask[torch.from_numpy(neurons)] = 1.0
            layer.mlp.down_proj.register_forward_pre_hook(lambda _m, a, k=mask: (a[0] * k,))
        sparse = hf(answer[:, :-1], past_key_values=past, use_cache=True).logits[0].log_softmax(-1)
    assert score.num_tokens == 5
    assert score.nll == pytest.approx(-float(sparse.gather(1, answer[0, 1:, None]).sum()), rel=1e-4)
    assert score.from_dense.kl == pytest.approx(float((dense.exp() * (dense - sparse)).sum()), rel=1e-3)
    assert score.from_dense.num_agreeing == int((dense.argmax(-1) == sparse.argmax(-1)).sum())
    assert score.ffn_reads == pytest.approx(sum(map(len, kept)) / (3 * 88))


def test_sweep_refuses_what_cannot_be_served() -> None:
    selector = selector_without_artifact()
    with pytest.raises(InvalidRequestError, match="unknown glass_method 'nope'"):
        Sweep(("nope",), (0.5,)).conditions(selector)
    with pytest.raises(MissingStatisticsError, match="a_glass"):
        Sweep(("a_glass",), (0.5,)).conditions(selector)
    assert Sweep(("dense",), (0.5,), profiles=("uniform", "sensitivity")).conditions(selector) == [
        SparsityParams(0.0, None, "dense")
    ]
    assert Sweep(("oracle", "oracle"), (0.5, 0.5), (0.1, 0.9)).conditions(selector) == [
        SparsityParams(0.5, None, "oracle")
    ]


def test_prompts_keep_short_instructions_without_input(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "tasks.jsonl",
        [
            {"instruction": "kept", "instances": [{"input": "", "output": "x"}]},
            {"instruction": "needs input", "instances": [{"input": "a", "output": "x"}]},
            {"instruction": "l" * 120},
            {"instruction": "l" * 119},
            {"instruction": "beyond the limit"},
        ],
    )
    assert read_prompts(path, limit=2) == ["kept", "l" * 119]
    assert read_prompts(path, limit=9, max_chars=8) == ["kept"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{oops", "line 2: expected a JSON object, got invalid JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"prompt": "x"}', "line 2: `instruction` must be a non-empty string, got None"),
        ('{"instruction": 7}', "line 2: `instruction` must be a non-empty string, got 7"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"instruction": "fine"}\n' + line + "\n", encoding="utf-8")
    assert main(["eval", "longform", "anything", "--prompts", str(path)]) == 1
    assert problem in capsys.readouterr().err


def test_prompt_file_and_flag_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read as a prompt file"):
        read_prompts(tmp_path / "absent.jsonl", limit=1)
    empty = write_lines(tmp_path / "empty.jsonl", [])
    with pytest.raises(ConfigurationError, match="no instruction under 120 characters"):
        read_prompts(empty, limit=1)
    with pytest.raises(ConfigurationError, match="limit must be at least 1, got 0"):
        read_prompts(empty, limit=0)
    with pytest.raises(ConfigurationError, match=r"--sparsities must be numbers separated by commas, got '0\.5;0\.7'"):
        parse_floats("0.5;0.7", "--sparsities")
    with pytest.raises(ConfigurationError, match="--methods must be names separated by commas, got 'a,,b'"):
        parse_names("a,,b", "--methods")


def test_answers_need_two_tokens(model_dir: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompts", str(prompts), "--max-new-tokens", "1", "--methods", "griffin"]
    assert main(["eval", "longform", str(model_dir), *flags]) == 1
    assert "max_new_tokens must be at least 2" in capsys.readouterr().err


def test_a_base_model_is_asked_without_a_template(tmp_path: Path, model_dir: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    (base / "chat_template.jinja").unlink()
    text = load_text_processor(base)
    assert text.decode(encode_instruction(text, "Who?")) == "Question: Who?\nAnswer:"
    chat = load_text_processor(model_dir)
    assert text.decode(encode_instruction(chat, "Who?")) == "user\nWho?\nassistant\n"


def test_refined_conditions_read_what_was_promised_and_beat_chance(
    model_dir: Path, artifact: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("--methods", "random", "--sparsities", "0.2,0.5", "--profiles", "sensitivity", "--refine", "off,on")
    result = evaluate(model_dir, prompts, tmp_path / "out.json", *sweep, "--artifact", str(artifact))
    rows = {(row["refine"], row["sparsity"]): row for row in result["rows"]}
    assert list(rows) == [(False, 0.2), (False, 0.5), (True, 0.2), (True, 0.5)]
    for sparsity in (0.2, 0.5):
        assert rows[True, sparsity]["lambda"] is None
        assert rows[True, sparsity]["ffn_reads"] == pytest.approx(1 - sparsity, abs=0.03)
        assert rows[True, sparsity]["kl"] < rows[False, sparsity]["kl"] / 2
    assert rows[True, 0.2]["kl"] < rows[True, 0.5]["kl"]
    assert "refined" in capsys.readouterr().out


def test_refinement_that_cannot_be_had_is_refused_before_anything_slow(
    model_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in (
        (("--refine", "on"), "glass_refine is unavailable: there is no artifact"),
        (("--refine", "yes"), "--refine must be off, on or off,on, got 'yes'"),
    ):
        assert main(["eval", "longform", str(model_dir), "--prompts", str(prompts), *flags]) == 1
        assert message in capsys.readouterr().err
