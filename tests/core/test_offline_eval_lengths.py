"""Length sweeps of `glass eval longform`: prompts cut from conversations, scores by position in the answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from glass_core.errors import ConfigurationError
from glass_core.offline.cli import main
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.conversations import Turn, conversation_prompts
from glass_core.offline.evaluate.lengths import length_sweep
from glass_core.offline.evaluate.scores import Divergence
from glass_core.offline.evaluate.sweep_report import interval_arms, plot_sweeps, print_sweeps
from glass_core.text import load_text_processor
from tests.core.prompt_file import INSTRUCTIONS
from tests.tiny_models import save_tiny_model


def test_both_sweeps_in_one_run(
    model_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, answers = tmp_path / "out.json", tmp_path / "answers.json"
    flags = ["--prompts", str(prompts), "--methods", "griffin", "--sparsities", "0.5", "--answers", str(answers)]
    sweeps = ["--max-new-tokens", "24,8", "--prompt-tokens", "4,16", "--json", str(output)]
    assert main(["eval", "longform", str(model_dir), *flags, *sweeps]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    (row,) = result["rows"]
    assert [(span["first"], span["end"]) for span in row["answer_spans"]] == [(0, 8), (8, 24)]
    assert row["answer_lengths"][-1]["kl"] == pytest.approx(row["kl"])
    assert row["answer_lengths"][-1]["kl_interval"] == pytest.approx(row["kl_interval"])
    assert [entry["prompt_tokens"] for entry in result["prompt_lengths"]] == [4, 16]
    assert all(entry["rows"][0]["kl"] > 0 for entry in result["prompt_lengths"])
    cut = json.loads((tmp_path / "answers-prompt16.json").read_text(encoding="utf-8"))["answers"]
    assert [len(answer["prompt"]) for answer in cut] == [16] * 4
    assert (tmp_path / "out-lengths.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "KL by prompt tokens" in printed
    assert "KL by answer tokens" in printed


def test_a_prompt_is_the_end_of_a_conversation(model_dir: Path) -> None:
    text = load_text_processor(model_dir)
    turns = [Turn(word, f"the fox {index}") for index, word in enumerate(INSTRUCTIONS)]
    long, short = conversation_prompts(text, turns, 60), conversation_prompts(text, turns, 9)
    assert [len(prompt) for prompt in long] == [60] * 4
    assert [prompt[-9:] for prompt in long] == short
    assert "the fox 0" in text.decode(long[1])
    assert "the fox 1" not in text.decode(long[1])
    with pytest.raises(ConfigurationError, match="prompt_tokens 5000: 4 instructions"):
        conversation_prompts(text, turns, 5000)


def test_a_base_models_conversation_is_questions_and_answers(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    (base / "chat_template.jinja").unlink()
    text = load_text_processor(base)
    (_, second) = conversation_prompts(text, [Turn("Who?", " the fox"), Turn("Where?", " sea")], 40)
    assert text.decode(second).endswith("the fox\n\nQuestion: Where?\nAnswer:")


def divergence(*values: float) -> Divergence:
    return Divergence(np.array(values), np.array([value < 1 for value in values]))


def test_spans_count_answer_tokens_from_the_first() -> None:
    found = [divergence(0.0, 1.0, 2.0, 3.0, 4.0), divergence(1.0, 3.0)]  # answers of 6 and of 3 tokens
    sweep = length_sweep(found, (6, 3), Bootstrap.over(2, seed=0))
    first, rest = sweep["answer_spans"]
    assert (first["num_answers"], first["num_tokens"], first["kl"], first["agreement"]) == (2, 4, 1.25, 0.25)
    assert (rest["num_answers"], rest["num_tokens"], rest["kl"], rest["kl_interval"]) == (1, 3, 3.0, None)
    assert sweep["answer_lengths"][1]["kl"] == pytest.approx(14 / 7)
    (_, beyond) = length_sweep(found, (6, 9), Bootstrap.over(2, seed=0))["answer_spans"]
    assert (beyond["num_tokens"], beyond["kl"]) == (0, None)
    assert length_sweep(found, (6,), Bootstrap.over(2, seed=0)) == {}


def test_draws_without_a_token_are_left_out_of_an_interval() -> None:
    bootstrap = Bootstrap.over(3, seed=1)
    low, high = bootstrap.interval([2.0, 0.0, 6.0], [1, 0, 2]) or (0.0, 0.0)
    assert (low, high) == (2.0, 3.0)
    assert bootstrap.interval([2.0, 0.0, 0.0], [1, 0, 0]) is None


def test_nothing_is_shown_of_a_plain_run(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as file:
        print_sweeps({"rows": []}, Console(file=file))
    plot_sweeps({"rows": []}, tmp_path / "plot.png")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == ""
    assert not (tmp_path / "plot.png").exists()
    assert interval_arms({"kl": 1.0, "kl_interval": (1.5, 3.0)}, "kl") == (0.0, 2.0)
