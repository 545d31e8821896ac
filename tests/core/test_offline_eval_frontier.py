"""`glass eval frontier`: points of quality against speed, with stand-ins for llama.cpp's programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from glass_core.api import SparsityParams
from glass_core.checkpoint.prepared import open_prepared
from glass_core.offline.bench.llama_cpp import LlamaBench
from glass_core.offline.bench.quality import Score
from glass_core.offline.cli import main
from glass_core.offline.frontier.points import OwnPoint, RivalPoint, compared
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.extension import why_missing
from tests.core.fake_llama_cpp import write_llama_bench, write_llama_server
from tests.tiny_models import save_tiny_model


def score(kl: float) -> Score:
    return Score(kl, 0.9, 10, (kl, kl), (0.9, 0.9))


def test_who_beats_whom(tmp_path: Path) -> None:
    rivals = []
    for name, kl, speeds in (("good", 0.1, [10.0, 20.0]), ("fast", 0.3, [40.0, 80.0])):
        gguf = tmp_path / f"model.{name}.gguf"
        gguf.write_bytes(b"1234")
        rivals.append(RivalPoint(LlamaBench(tmp_path, gguf, 1), score(kl), speeds))
    dense = OwnPoint("int4", SparsityParams(0.0), score(0.1), 1.0, [20.0, 40.0])
    half = OwnPoint("int4", SparsityParams(0.5, refine=True), score(0.2), 0.5, [60.0, 100.0])
    worst = OwnPoint("int4", SparsityParams(0.5), score(0.9), 0.5, [30.0, 30.0])
    rows = {row["label"]: row for row in compared([dense, half, worst, *rivals])}
    assert list(rows) == ["int4 dense", "int4 refined 0.5", "int4 a_glass 0.5", "llama.cpp good", "llama.cpp fast"]
    # against every rival of equal or worse KL: the fastest of them counts
    assert (rows["int4 dense"]["speedup"], rows["int4 dense"]["beaten_by"]) == (0.5, [])
    assert (rows["int4 refined 0.5"]["speedup"], rows["int4 refined 0.5"]["beaten_by"]) == (1.375, [])
    assert (rows["int4 a_glass 0.5"]["speedup"], rows["int4 a_glass 0.5"]["beaten_by"]) == (None, ["llama.cpp fast"])
    assert rows["llama.cpp good"]["file_bytes"] == 4
    assert rows["llama.cpp fast"]["tokens_per_second"] == 60.0


def test_result_table_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (reason := why_missing()) is not None:
        pytest.skip(reason)
    model_dir = save_tiny_model(tmp_path / "llama", "llama")
    make_image(open_prepared(model_dir), "int8")
    prompts, output, gguf = tmp_path / "prompts.jsonl", tmp_path / "out.json", tmp_path / "tiny.Q4_0.gguf"
    prompts.write_text('{"instruction": "Who is lazy?"}\n{"instruction": "Where is it?"}\n', encoding="utf-8")
    gguf.touch()
    bench = write_llama_bench(tmp_path)[0]
    write_llama_server(tmp_path)
    flags = ["--prompts", str(prompts), "--dtype", "int8", "--methods", "griffin", "--profiles", "uniform"]
    sizes = ["--sparsities", "0,0.5", "--quality-tokens", "10", "--num-tokens", "3", "--repeats", "2", "--threads", "1"]
    rivals = ["--llama-bench", str(bench), "--gguf", str(gguf), "--max-others-share", "1", "--json", str(output)]
    assert main(["eval", "frontier", str(model_dir), *flags, *sizes, *rivals]) == 0
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    dense, half, theirs = result["points"]
    assert [dense["label"], half["label"], theirs["label"]] == ["int8 dense", "int8 griffin 0.5", "llama.cpp Q4_0"]
    assert 0 <= dense["kl"] < half["kl"]
    assert (dense["ffn_reads"], half["ffn_reads"]) == (1.0, 0.5)
    assert theirs["tokens_per_second"] == 100.0
    assert dense["tokens_per_second_min"] <= dense["tokens_per_second"] <= dense["tokens_per_second_max"]
    assert result["conditions"]["peers"][0]["gguf"] == "tiny.Q4_0.gguf"
    assert "artifact" in result["refinement_problem"] or "refine" in result["refinement_problem"]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "no refined points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--gguf", "x.gguf"], "--gguf needs --llama-bench"),
        (["--gguf", "x.gguf", "--llama-bench", "absent"], "no such file: absent"),
    ],
)
def test_missing_rivals_are_named(flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "frontier", "anything", "--prompts", "x.jsonl", *flags]) == 1
    assert problem in capsys.readouterr().err
