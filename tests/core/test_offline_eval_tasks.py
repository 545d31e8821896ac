"""`glass eval tasks`: likelihoods against HF, accuracy of local files, and the adapter to lm_eval with a stand-in."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.cli import main
from glass_core.offline.evaluate.choices import read_questions
from glass_core.offline.evaluate.lm_eval_model import lm_eval_model
from glass_core.offline.evaluate.subjects import model_selector
from glass_core.offline.evaluate.task_scoring import TaskModel
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.text import load_text_processor

CONTEXT, CONTINUATION = "What is the capital", " of France?"


def task_model(model_dir: Path, params: SparsityParams) -> TaskModel:
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    return TaskModel(model, load_text_processor(model_dir), model_selector(model, None), params)


def test_dense_likelihood_equals_hf_and_pruning_moves_it(model_dir: Path) -> None:
    dense = task_model(model_dir, SparsityParams())
    given = dense.text.encode_prompt(CONTEXT)
    whole = dense.text.encode_prompt(CONTEXT + CONTINUATION)
    factory: Any = AutoModelForCausalLM
    with torch.no_grad():
        log_probs = factory.from_pretrained(model_dir)(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(float(log_probs[index - 1, whole[index]]) for index in range(len(given), len(whole)))
    assert dense.likelihood(CONTEXT, CONTINUATION).log_prob == pytest.approx(expected, rel=1e-4)
    pruned = task_model(model_dir, SparsityParams(0.8, method="griffin")).likelihood(CONTEXT, CONTINUATION)
    assert pruned.log_prob != pytest.approx(expected, rel=1e-3)


def test_what_is_written_is_greedy_and_ends_where_it_should(model_dir: Path) -> None:
    model = task_model(model_dir, SparsityParams(0.5, method="griffin"))
    written = model.write(CONTEXT, until=(), max_tokens=6)
    assert written
    assert model.write(CONTEXT, until=(written[2],), max_tokens=6) == written[: written.index(written[2])]
    with pytest.raises(ConfigurationError, match="adds no token"):
        model.likelihood(CONTEXT, "")


def test_accuracy_of_local_files(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, task, output = task_model(model_dir, SparsityParams()), tmp_path / "quiz.jsonl", tmp_path / "out.json"
    choices = [" of France?", " is lazy", " fox"]
    scores = [dense.likelihood(CONTEXT, choice).log_prob for choice in choices]
    right, wrong = scores.index(max(scores)), scores.index(min(scores))
    entries = [{"context": CONTEXT, "choices": choices, "answer": answer} for answer in (right, wrong, right, right)]
    task.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    flags = ["--tasks", str(task), "--methods", "dense,griffin", "--sparsities", "0.5", "--json", str(output)]
    assert main(["eval", "tasks", str(model_dir), *flags]) == 0
    first, second = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert (first["task"], first["method"], first["num_questions"], first["accuracy"]) == ("quiz", "dense", 4, 0.75)
    assert first["accuracy_interval"][0] < 0.75 < first["accuracy_interval"][1]
    assert second["method"] == "griffin"
    assert "75.0%" in capsys.readouterr().out
    assert main(["eval", "tasks", str(model_dir), *flags, "--limit", "0"]) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no question"),
        ("{", "line 1: expected context, choices and answer"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "line 1: expected a text, at least two choices"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "line 1: expected a text, at least two choices"),
    ],
)
def test_a_bad_task_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=problem):
        read_questions(path)
    with pytest.raises(ConfigurationError, match="cannot be read as a task file"):
        read_questions(tmp_path / "absent.jsonl")


def test_the_adapter_answers_the_harness(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = task_model(model_dir, SparsityParams(0.5, method="griffin"))
    module = ModuleType("lm_eval.api.model")
    monkeypatch.setattr(module, "LM", object, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    adapter = lm_eval_model(model)
    assert adapter.loglikelihood([SimpleNamespace(args=(CONTEXT, CONTINUATION))]) == [
        tuple(model.likelihood(CONTEXT, CONTINUATION))
    ]
    asked = SimpleNamespace(args=(CONTEXT, {"until": "\n", "max_gen_toks": 3}))
    assert adapter.generate_until([asked]) == [model.write(CONTEXT, until=("\n",), max_tokens=3)]
    with pytest.raises(ConfigurationError, match="only greedy"):
        adapter.generate_until([SimpleNamespace(args=(CONTEXT, {"do_sample": True}))])
    with pytest.raises(ConfigurationError, match="no prompt to choose neurons from"):
        adapter.loglikelihood_rolling([])


def test_a_missing_harness_is_named(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigurationError, match="lm_eval is not installed"):
        lm_eval_model(task_model(model_dir, SparsityParams()))
