"""`glass eval longform --runner native` on a tiny model: the runner beside the reference; kept answers; intervals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_core.errors import CheckpointError, ConfigurationError
from glass_core.offline.cli import main
from glass_core.offline.evaluate.answer_file import kept_answers
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.report import curves
from glass_core.runners.native.extension import why_missing

ANSWERS = [Answer((1, 2), (3, 4, 5)), Answer((6,), (7,))]


def evaluate(model_dir: Path, prompts: Path, output: Path, *flags: str) -> dict[str, Any]:
    words = ["--prompts", str(prompts), "--max-new-tokens", "16", "--json", str(output), *flags]
    assert main(["eval", "longform", str(model_dir), *words]) == 0
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


@pytest.mark.skipif(why_missing() is not None, reason="the native runner is not built")
def test_the_native_runner_beside_the_reference(model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    answers, flags = tmp_path / "answers.json", ("--methods", "dense,griffin,oracle", "--sparsities", "0.5")
    assert main(["quantize", str(model_dir), "--format", "bf16"]) == 0
    assert main(["quantize", str(model_dir), "--format", "int8"]) == 0
    native = ("--dtype", "bf16,int8", "--threads", "1", "--answers", str(answers))
    result = evaluate(model_dir, prompts, tmp_path / "native.json", *flags, *native)
    again = evaluate(model_dir, prompts, tmp_path / "again.json", *flags, *native)
    alone = evaluate(model_dir, prompts, tmp_path / "alone.json", *flags, "--runner", "torch_runner")
    assert again["rows"] == result["rows"]
    reference, bf16, int8 = result["rows"][:3], result["rows"][3:6], result["rows"][6:]
    assert reference == alone["rows"]
    for rows, dtype in ((bf16, "bf16"), (int8, "int8")):
        assert [(row["runner"], row["dtype"]) for row in rows] == [("native", dtype)] * 3
        assert [row["method"] for row in rows] == ["dense", "griffin", "oracle"]
        for mine, row in zip(reference, rows, strict=True):
            assert row["kl_change"] == pytest.approx(row["kl"] - mine["kl"], abs=1e-9)
            assert row["kl_interval"][0] <= row["kl"] <= row["kl_interval"][1]
            # what the runner adds is little beside what the condition costs
            assert 0 <= row["kl_same_condition"] < 0.5 * max(mine["kl"], 0.05)
        assert rows[0]["kl"] == pytest.approx(rows[0]["kl_same_condition"], rel=1e-3, abs=1e-7)
    assert bf16[0]["kl"] < int8[0]["kl"]
    assert bf16[0]["agreement"] > 0.9
    assert len(curves(result["rows"])) == 9


def test_runner_and_dtype_must_fit(model_dir: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "longform", str(model_dir), "--prompts", str(prompts)]
    assert main([*words, "--runner", "torch_runner", "--dtype", "int8"]) == 1
    assert "--dtype must be one of float32, bfloat16 for torch_runner, got 'int8'" in capsys.readouterr().err
    assert main([*words, "--dtype", "float32,bfloat16"]) == 1
    assert "must be one of float32" in capsys.readouterr().err
    assert main([*words, "--dtype", "int4,float32"]) == 1
    assert "must be one or several of int4, int8, bf16 for native, got 'int4,float32'" in capsys.readouterr().err


def sample_nothing() -> list[Answer]:
    raise AssertionError("the answers are there already")


def test_answers_are_sampled_once(tmp_path: Path) -> None:
    path, origin = tmp_path / "kept" / "answers.json", {"seed": 0, "instructions": ["a" * 80]}
    assert kept_answers(path, origin, lambda: ANSWERS) == ANSWERS
    assert kept_answers(path, origin, sample_nothing) == ANSWERS
    with pytest.raises(ConfigurationError, match="its answers have seed 0, this run 1"):
        kept_answers(path, {**origin, "seed": 1}, sample_nothing)
    with pytest.raises(ConfigurationError, match=r"instructions \['a+\.\.\., this run \['b'\]"):
        kept_answers(path, {**origin, "instructions": ["b"]}, sample_nothing)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "expected a JSON object"),
        ("{}", "expected an object with origin and answers"),
        ('{"origin": {}, "answers": [{"prompt": [1]}]}', "needs a list of numbers token_ids, got {'prompt'"),
        ('{"origin": {}, "answers": [3]}', "needs a list of numbers prompt, got 3"),
    ],
)
def test_a_damaged_answer_file_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises((ConfigurationError, CheckpointError), match=problem):
        kept_answers(path, {}, sample_nothing)


def test_intervals_are_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, size=200)
    interval = Bootstrap.over(200, seed=0).interval(list(values * 10), [10] * 200)
    assert interval is not None
    half_width = 1.96 * values.std() / np.sqrt(200)
    assert interval[0] == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert interval[1] == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_intervals_weigh_answers_by_their_tokens() -> None:
    bootstrap = Bootstrap.over(2, seed=0)
    # drawn are (a, a), (a, b) and (b, b): the extremes are the answers' own means
    assert bootstrap.interval([1.0, 9.0], [1, 3]) == (1.0, 3.0)
    assert bootstrap.interval([2.0, 6.0], [1, 3]) == (2.0, 2.0)
    assert Bootstrap.over(1, seed=0).interval([1.0], [1]) is None
