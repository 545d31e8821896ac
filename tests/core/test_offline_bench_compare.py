"""`glass bench compare` with stand-ins for llama.cpp: who is asked what, in which order, and how ratios come about."""

import json
import os
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from glass_core.checkpoint.prepared import open_prepared
from glass_core.errors import ConfigurationError
from glass_core.offline.bench import compare_servers, disturbance
from glass_core.offline.bench.compare import CompareSettings, Paired, alternate
from glass_core.offline.bench.llama_cpp import LlamaBench
from glass_core.offline.bench.quality import Score, add_quality
from glass_core.offline.cli import build_parser, load_commands, main
from glass_core.offline.commands.bench import compare as compare_command
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.extension import why_missing
from tests.core.fake_llama_cpp import write_llama_bench, write_llama_server

# whatever runs beside the tests must not repeat their measurements
SMALL = ["--num-tokens", "2", "--prompt-tokens", "4", "--prefill-tokens", "3,6", "--max-others-share", "1"]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.Q4_0.gguf"
    path.touch()
    return path


def compare(arguments: Sequence[str | Path], output: Path) -> dict[str, Any]:
    assert main(["bench", "compare", *map(str, arguments), "--json", str(output)]) == 0
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


def test_result_file(model_dir: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, log = write_llama_bench(tmp_path)
    arguments: list[str | Path] = [
        model_dir,
        "--llama-bench",
        bench,
        "--gguf",
        gguf,
        "--dtype",
        "float32",
        "--method",
        "griffin",
    ]
    result = compare([*arguments, *SMALL, "--threads", "1"], tmp_path / "out.json")
    assert result["conditions"]["peers"][0]["model_type"] == "llama Q4_0"
    assert result["conditions"]["peers"][0]["gguf"] == "tiny.Q4_0.gguf"
    named = {(row["what"], row["peer"]): row for row in result["rows"]}
    assert set(named) == {
        ("decode, dense, batch 1", "Q4_0"),
        ("decode, sparsity 0.5, batch 1", "Q4_0"),
        ("prefill, 3 tokens", "Q4_0"),
        ("prefill, 6 tokens", "Q4_0"),
        ("decode, sparsity 0.5, batch 1", "own dense"),
    }
    dense = named["decode, dense, batch 1", "Q4_0"]
    assert (dense["theirs"], dense["effective_sparsity"]) == (100.0, 0.0)
    assert dense["ratio"] == pytest.approx(dense["ours"] / 100.0)
    assert named["prefill, 6 tokens", "Q4_0"]["theirs"] == 1000.0
    for row in result["rows"]:
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert "compare" in capsys.readouterr().out
    flags = [json.loads(line) for line in log.read_text().splitlines()]
    assert flags[0] == {"-m": str(gguf), "-p": "0", "-n": "1", "-t": "1", "-r": "1", "-ngl": "0", "-o": "json"}
    decodes = [call for call in flags if call["-n"] == "2"]
    prefills = [call for call in flags if call["-p"] == "3,6"]
    assert len(decodes) == len(prefills) == 5
    assert all(call["-d"] == "4" and call["-t"] == "1" for call in decodes)


def test_sides_swap_from_repeat_to_repeat() -> None:
    order: list[str] = []
    for repeat in range(3):
        alternate(repeat, lambda: order.append("ours"), lambda: order.append("theirs"))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_disturbed_repeats_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.0, 0.3, 0.05, 0.2, 0.2, 0.9])
    monkeypatch.setattr(disturbance, "others_share", lambda before, after: next(shares))
    quiet, kept = disturbance.QuietRepeats(limit=0.1), list[int]()
    quiet.run(2, kept.append, lambda: kept.__delitem__(-1))
    assert (kept, quiet.num_discarded, quiet.largest_kept) == ([0, 1], 2, 0.05)
    endless = disturbance.QuietRepeats(limit=0.1)
    endless.run(1, kept.append, lambda: kept.__delitem__(-1))
    assert (endless.num_discarded, endless.largest_kept) == (2, 0.9)


def test_the_share_of_others() -> None:
    before, after = disturbance.Usage(10.0, 100.0, 3.0), disturbance.Usage(16.0, 120.0, 5.0)
    assert disturbance.others_share(before, after) == pytest.approx(0.2)
    assert [disturbance.others_share(start, after) for start in (None, after)] == [0.0, 0.0]
    now = disturbance.usage([os.getpid(), 2**30])
    if now is not None:
        assert now.own > 0 and now.busy <= now.total


def test_the_ratio_is_the_median_of_the_repeats_own_ratios() -> None:
    row = Paired("speed", "them", ours=[10.0, 40.0, 30.0], theirs=[5.0, 10.0, 30.0]).row()
    assert (row["ours"], row["theirs"]) == (30.0, 10.0)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (2.0, 1.0, 4.0)


def test_a_random_model_needs_no_artifact() -> None:
    parser = build_parser(load_commands())
    for model, method in (("--random=llama-1b", "griffin"), ("smollm2-135m", "a_glass")):
        args = parser.parse_args(["bench", "compare", model, "--llama-bench", "PATH"])
        assert compare_command._settings(args).method == method


def test_few_repeats_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="repeats must be at least 5 for a median, got 4"):
        CompareSettings(repeats=4)
    with pytest.raises(ConfigurationError, match="max_others_share must lie in"):
        CompareSettings(max_others_share=0.0)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"status": 2}, "failed with status 2"),
        ({"output": "'nothing'"}, "its output is not JSON"),
        ({"output": "'3'"}, "expected a JSON list of objects"),
        ({"output": "'[]'"}, "no avg_ts for n_gen"),
    ],
)
def test_a_peer_that_fails_is_an_error(script: dict[str, Any], message: str, gguf: Path, tmp_path: Path) -> None:
    bench, _ = write_llama_bench(tmp_path, **script)
    with pytest.raises(ConfigurationError, match=message):
        LlamaBench(bench, gguf, 1).decode_speed([], num_tokens=4)
    with pytest.raises(ConfigurationError, match="cannot run"):
        LlamaBench(tmp_path / "absent", gguf, 1).decode_speed([], num_tokens=4)


def test_bad_flags_name_what_is_missing(
    model_dir: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, _ = write_llama_bench(tmp_path)
    for arguments, message in (
        ([model_dir, "--llama-bench", bench], "--gguf FILE is needed"),
        ([model_dir, "--llama-bench", tmp_path / "no", "--gguf", gguf], "no such file"),
        (["--random", "llama-1b", "--llama-bench", bench, "--quality"], "no --quality, no --llama-server"),
        (["--random", "llama-1b", "--transformers"], "no Hugging Face folder"),
        ([model_dir], "no peer: give --llama-bench with --gguf, --transformers or --vllm-python"),
        ([model_dir, "--transformers", "--gguf", gguf], "--gguf need --llama-bench"),
    ):
        assert main(["bench", "compare", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err


def test_servers_are_compared(model_dir: Path, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = write_llama_bench(tmp_path)
    server = write_llama_server(tmp_path)
    monkeypatch.setattr(
        compare_servers, "glass_command", lambda model, port, flags: [str(server), "--port", str(port), *flags]
    )
    arguments: list[str | Path] = [
        model_dir,
        "--llama-bench",
        bench,
        "--llama-server",
        server,
        "--gguf",
        gguf,
        "--dtype",
        "float32",
    ]
    flags = ["--sparsities", "0", "--concurrency", "1,2", "--method", "griffin", "--threads", "1"]
    result = compare([*arguments, *SMALL, *flags], tmp_path / "out.json")
    rows = {(row["what"], row["peer"]): row for row in result["rows"]}
    peer = "llama-server Q4_0"
    assert ("http, 2 streams, dense", peer) in rows
    assert rows["http, 1 stream, dense, TTFT", peer]["unit"] == "ms"
    assert rows["http, 1 stream, dense, while streaming", "own engine"]["ratio"] > 0
    assert rows["start to ready", peer]["ratio_min"] < rows["start to ready", peer]["ratio_max"]
    if sys.platform == "linux":
        assert rows["peak resident memory", peer]["ours"] > 0


def test_quality_stands_beside_the_speed(model_dir: Path, gguf: Path, tmp_path: Path) -> None:
    if (reason := why_missing()) is not None:
        pytest.skip(reason)
    make_image(open_prepared(model_dir), "int8")
    bench, server = write_llama_bench(tmp_path)[0], write_llama_server(tmp_path)
    from glass_core.config import EngineConfig
    from glass_core.offline.bench.quality import QualitySettings, measure_quality, print_quality
    from glass_core.offline.bench.session import open_session
    from glass_core.offline.progress import SilentProgress

    config = EngineConfig(model_dir, "tiny", runner="native", dtype="int8", num_threads=1)
    asked = QualitySettings(
        (0.0, 0.5), "griffin", num_tokens=8, llama_server=server, peers=(LlamaBench(bench, gguf, 1),)
    )
    with open_session(config, num_sequences=1, num_tokens=8) as session:
        dense, half, theirs = measure_quality(session, asked, SilentProgress())
    assert dense["num_tokens"] >= 4
    assert 0 <= dense["kl"] < half["kl"]
    assert dense["kl"] < theirs["kl"]
    assert theirs["side"] == "Q4_0"
    assert dense["kl_interval"][0] <= dense["kl"] <= dense["kl_interval"][1]
    output = StringIO()
    print_quality([dense, half, theirs], Console(file=output, width=100))
    printed = output.getvalue()
    assert f"{dense['num_tokens']} answer tokens" in printed
    assert f"{half['kl']:.4f}" in printed


def test_scores_and_their_place() -> None:
    reference = torch.log_softmax(torch.tensor([[0.0, 1.0], [3.0, 0.0]]), dim=-1)
    uniform = torch.full((2, 2), 0.5).log()
    score = Score.of([reference], [uniform])
    expected = (reference.exp() * (reference - uniform)).sum() / 2
    assert score.kl == pytest.approx(float(expected))
    assert (score.agreement, score.num_tokens, score.kl_interval) == (0.5, 2, None)
    low, high = Score.of([reference, reference], [uniform, reference]).kl_interval or (1.0, 0.0)
    assert low == pytest.approx(0.0, abs=1e-6)
    assert high == pytest.approx(float(expected))
    rows: list[dict[str, Any]] = [
        {"peer": "llama-server Q4_0", "sparsity": 0.5},
        {"peer": "own dense", "sparsity": 0.5},
        {"peer": "x", "sparsity": 0.0},
        {"peer": "Q4_0"},
    ]
    ours = [{"side": "ours", "sparsity": s, "kl": kl, "agreement": 1 - kl} for s, kl in ((0.0, 0.01), (0.5, 0.1))]
    add_quality(rows, [*ours, {"side": "Q4_0", "kl": 0.2, "agreement": 0.8}])
    assert [(row.get("kl_ours"), row.get("kl_theirs")) for row in rows] == [
        (0.1, 0.2), (0.1, 0.01), (0.01, None), (None, None),
    ]  # fmt: skip
    assert [(row.get("agreement_ours"), row.get("agreement_theirs")) for row in rows] == [
        (0.9, 0.8), (0.9, 0.99), (0.99, None), (None, None),
    ]  # fmt: skip


def test_quality_is_of_the_native_runner(model_dir: Path, gguf: Path, tmp_path: Path) -> None:
    bench, _ = write_llama_bench(tmp_path)
    arguments = [str(model_dir), "--llama-bench", str(bench), "--gguf", str(gguf), "--dtype", "float32", "--quality"]
    assert main(["bench", "compare", *arguments, *SMALL, "--method", "griffin", "--threads", "1"]) == 1
