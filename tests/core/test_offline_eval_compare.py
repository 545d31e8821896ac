"""`glass eval compare`: conditions against a baseline, answer by answer."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_core.errors import ConfigurationError
from glass_core.offline.cli import main
from glass_core.offline.evaluate.paired import compare, read_results

NUM_TOKENS = [10, 20, 30, 40]


def row(method: str, kl: list[float], **fields: Any) -> dict[str, Any]:
    answers = {"num_tokens": NUM_TOKENS, "nll": [2 * value for value in kl], "kl": kl}
    described = {"runner": "torch_runner", "dtype": "float32", "method": method, "sparsity": 0.5, "lambda": None}
    numbers = {"profile": "uniform", "refine": False, "kl": sum(kl) / sum(NUM_TOKENS), "answers": answers}
    return {**described, **numbers, **fields}


def result(*rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"bootstrap": {"seed": 0}, "rows": list(rows), **fields}


NOISE = [1.0, 50.0, 3.0, 200.0]
BASE = row("griffin", NOISE)


def test_pairs_are_certain_where_answers_differ() -> None:
    lower = row("a_glass", [0.75 * value for value in NOISE])
    (found,) = compare([result(BASE, lower)], ["a.json"], "griffin")
    assert found["condition"] == "a_glass at 0.5"
    assert found["kl_ratio"] == pytest.approx(-0.25)
    assert found["kl_ratio_interval"] == pytest.approx([-0.25, -0.25])
    assert found["ppl_ratio"] == pytest.approx(math.exp(-0.5 * sum(NOISE) / 100) - 1)
    low, high = found["ppl_ratio_interval"]
    assert low < found["ppl_ratio"] < high < 0


def test_ratios_are_of_sums() -> None:
    (found,) = compare([result(BASE, row("random", NOISE[::-1]))], ["a.json"], "griffin")
    assert found["kl_ratio"] == pytest.approx(0)
    low, high = found["kl_ratio_interval"]
    assert low < -0.5 < 1 < high


def test_the_most_similar_baseline_is_taken() -> None:
    base = result(
        row("a_glass", [2.0] * 4, dtype="int4"),
        row("a_glass", [4.0] * 4, profile="sensitivity"),
        row("a_glass", [8.0] * 4),
        row("a_glass", [1.0] * 4, sparsity=0.3),
        row("a_glass", [1.0] * 4, refine=True, profile="sensitivity"),
    )
    other = result(row("i_glass", [4.0] * 4, profile="sensitivity"), row("i_glass", [4.0] * 4, profile="tuned"))
    found = compare([base, other], ["a.json", "b.json"], "a_glass")
    ratios = [item["kl_ratio"] for item in found if item["file"] == "b.json"]
    # to the same profile; to the first of those alike where there is none
    assert ratios == [0, 0]
    assert [item["baseline_kl"] for item in found if "refined" in item["condition"]] == [0.16]


def test_the_same_condition_of_another_file_and_each_prompt_length() -> None:
    groups = [{"prompt_tokens": 8, "rows": [BASE]}]
    twice = [{"prompt_tokens": 8, "rows": [row("griffin", [2 * value for value in NOISE])]}]
    half = row("griffin", [0.5 * value for value in NOISE])
    other = result(half, row("a_glass", NOISE), prompt_lengths=twice)
    found = compare([result(BASE, prompt_lengths=groups), other], ["a.json", "b.json"], None)
    assert [(item["prompt_tokens"], item["kl_ratio"]) for item in found] == [(None, -0.5), (8, 1.0)]


def test_refusals(tmp_path: Path) -> None:
    others = row("griffin", NOISE)
    others["answers"] = {**others["answers"], "num_tokens": [10, 20, 30, 41]}
    with pytest.raises(ConfigurationError, match=r"b\.json: made with other answers"):
        compare([result(BASE), result(others)], ["a.json", "b.json"], None)
    with pytest.raises(ConfigurationError, match="no condition has a baseline random at its sparsity"):
        compare([result(BASE)], ["a.json"], "random")
    path = tmp_path / "old.json"
    for content, problem in (
        ("[]", "not a result of `glass eval longform`"),
        ('{"rows": [{"kl": 1}]}', "no scores per answer"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=problem):
            read_results([path])
    with pytest.raises(ConfigurationError, match=r"missing\.json"):
        read_results([tmp_path / "missing.json"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "a.json", tmp_path / "out.json"
    path.write_text(json.dumps(result(BASE, row("oracle", list(np.array(NOISE) / 2)))), encoding="utf-8")
    assert main(["eval", "compare", str(path), "--to", "griffin", "--json", str(output)]) == 0
    assert "-50.0%" in capsys.readouterr().out
    (found,) = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert found["kl_ratio_interval"] == [-0.5, -0.5]
