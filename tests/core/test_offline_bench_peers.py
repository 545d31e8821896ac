"""Peers in processes of their own, our engine without HTTP, and the streams they are compared with."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glass_core.config import EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.offline.bench import compare_servers, compare_streams
from glass_core.offline.bench.bandwidth import ReadBandwidth
from glass_core.offline.bench.compare_streams import StreamRace
from glass_core.offline.bench.load import process
from glass_core.offline.bench.load.generator import ClosedLoop
from glass_core.offline.bench.load.target import Target
from glass_core.offline.bench.peers import own_engine
from glass_core.offline.bench.peers.bf16_folder import write_bf16_folder
from glass_core.offline.bench.peers.child import TransformersSide
from glass_core.offline.bench.peers.own_engine import OwnEngine
from glass_core.offline.bench.peers.process import ChildPeer, PeerCommand
from glass_core.offline.bench.serving import ServingSettings
from glass_core.offline.cli import main
from tests.core.fake_llama_cpp import write_llama_server
from tests.core.fake_vllm import write_vllm_python
from tests.fakes_engine import FAKE_INFO, FakeEngineClient

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


@pytest.fixture(scope="module")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vllm_python(tmp_path_factory.mktemp("vllm"))


def command_of(python: Path, folder: Path, *, max_sequences: int = 2) -> PeerCommand:
    return PeerCommand("vllm", python, folder, num_threads=1, max_tokens=32, max_sequences=max_sequences)


def test_a_child_answers_what_it_is_asked(vllm_python: Path, tmp_path: Path) -> None:
    with ChildPeer(command_of(vllm_python, tmp_path)) as peer:
        assert (peer.label, peer.versions["vllm"], len(peer.pids)) == ("vllm bf16", "0.0-fake", 1)
        assert peer.description()["threads"] == 1
        assert len(peer.prefill_speeds(PROMPTS)) == 3
        assert peer.decode_speed(PROMPTS[0], num_tokens=4) > 0
        assert peer.stream_speed(PROMPTS, num_tokens=3, concurrency=2, sparsity=0.5) > 0
        assert (peer.peak_rss_bytes() or 1) > 0
        with pytest.raises(ConfigurationError, match="vllm bf16 failed: ValueError: an empty prompt"):
            peer.decode_speed([], num_tokens=4)


def test_a_child_keeps_no_more_in_flight_than_asked_for(vllm_python: Path, tmp_path: Path) -> None:
    with ChildPeer(command_of(vllm_python, tmp_path, max_sequences=1)) as peer:
        assert peer.stream_speed(PROMPTS, num_tokens=2, concurrency=1, sparsity=0.0) > 0
        with pytest.raises(ConfigurationError, match="more in flight than asked for"):
            peer.stream_speed(PROMPTS, num_tokens=2, concurrency=2, sparsity=0.0)


def test_a_child_that_does_not_start_shows_what_it_printed(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such engine >&2\n", encoding="utf-8")
    broken.chmod(0o755)
    with (
        pytest.raises(ConfigurationError, match="gave no answer: 'no such engine'"),
        ChildPeer(command_of(broken, tmp_path)),
    ):
        pass
    with pytest.raises(ConfigurationError, match="cannot run"), ChildPeer(command_of(tmp_path / "no", tmp_path)):
        pass


def test_a_child_imports_nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    environment = command_of(tmp_path / "bin" / "python", tmp_path).environment()
    assert "PYTHONPATH" not in environment
    assert environment["PATH"].startswith(f"{tmp_path / 'bin'}:")
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.fixture(scope="module")
def transformers_side(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformersSide:
    folder = write_bf16_folder(model_dir, tmp_path_factory.mktemp("bf16"))
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    return TransformersSide(argparse.Namespace(model=str(folder), threads=torch.get_num_threads()))


def test_transformers_answers_a_padded_batch_as_singles(transformers_side: TransformersSide) -> None:
    together, _, _ = transformers_side._first(PROMPTS)
    alone = [transformers_side._first([prompt])[0] for prompt in PROMPTS]
    assert together.flatten().tolist() == torch.cat(alone).flatten().tolist()


def test_transformers_is_timed(transformers_side: TransformersSide) -> None:
    assert set(transformers_side.versions()) == {"transformers", "torch"}
    assert transformers_side.prefill(PROMPTS[0]) > 0
    assert transformers_side.decode(PROMPTS[0], 3) > 0
    assert transformers_side.streams(PROMPTS, 3, 2) > 0


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no \*.safetensors"):
        write_bf16_folder(tmp_path, tmp_path)


def test_our_engine_answers_all_prompts(model_dir: Path) -> None:
    config = EngineConfig(model_dir, "tiny", runner="torch_runner", dtype="float32")
    with OwnEngine(config, method="griffin", max_sequences=2) as engine:
        for sparsity in (0.0, 0.5):
            assert engine.stream_speed(PROMPTS, num_tokens=4, concurrency=2, sparsity=sparsity) > 0
        stats = engine._client.stats()
        assert (stats.num_generated_tokens, stats.num_requests_running) == (2 * 3 * 4, 0)
        assert set(stats.cost_by_method) == {"dense", "griffin"}
        assert engine.peak_rss_bytes() is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("method", "refined"), [(None, [False, True, False]), ("griffin", [False] * 3)])
def test_our_engine_refines_what_the_server_would(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str | None, refined: list[bool]
) -> None:
    client = FakeEngineClient(lambda request: [1, 2], replace(FAKE_INFO, refinement={"uniform": 0.5}))
    monkeypatch.setattr(own_engine, "start_engine", lambda config: client)
    with OwnEngine(EngineConfig(tmp_path, "tiny"), method=method, max_sequences=1) as engine:
        for sparsity in (0.0, 0.5, 0.6):
            engine.stream_speed(PROMPTS[:1], num_tokens=2, concurrency=1, sparsity=sparsity)
    assert [request.sparsity.refine for request in client.requests] == refined


class ScriptedPeer:
    """Notes what it is asked; its speed is ten times the sparsity plus one."""

    label, pids = "scripted", ()

    def __init__(self, *, prunes: bool, log: list[Any]) -> None:
        self.prunes, self.log = prunes, log

    def stream_speed(
        self, prompts: Sequence[Sequence[int]], *, num_tokens: int, concurrency: int, sparsity: float
    ) -> float:
        self.log.append(("theirs", [list(prompt) for prompt in prompts], num_tokens, concurrency, sparsity))
        return 10 * sparsity + 1

    def peak_rss_bytes(self) -> int | None:
        return None


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    noted: list[Any] = []

    def measure(target: Target, settings: ServingSettings, load: ClosedLoop, sparsity: float, repeat: int) -> Any:
        noted.append(("ours", load.concurrency, sparsity, repeat))
        return {"tokens_per_second": 22.0, "effective_sparsity": sparsity or None}

    monkeypatch.setattr(compare_streams, "measure_load", measure)
    monkeypatch.setattr(compare_streams, "warm_up", lambda target, settings: None)
    return iter([noted])


@pytest.mark.parametrize(("prunes", "ratios"), [(True, [22.0, 22 / 6]), (False, [22.0, 22.0])])
def test_streams_take_turns_with_the_same_prompts(log: Iterator[list[Any]], prunes: bool, ratios: list[float]) -> None:
    noted = next(log)
    settings = ServingSettings(loads=(ClosedLoop(2),), sparsities=(0.0, 0.5), num_requests=3, num_tokens=5)
    peer = ScriptedPeer(prunes=prunes, log=noted)
    race = StreamRace(Target("127.0.0.1", 1, "m"), [peer], settings, lambda text: [len(text)])
    noted.clear()
    for repeat in range(3):
        race.run(repeat)
    race.discard()
    sides = [entry[0] for entry in noted]
    theirs = 2 if prunes else 1
    assert sides == ["ours"] * 2 + ["theirs"] * theirs * 2 + ["ours"] * 4 + ["theirs"] * theirs
    asked = [entry for entry in noted if entry[0] == "theirs"]
    assert all(len(prompts) == 3 and (tokens, busy) == (5, 2) for _, prompts, tokens, busy, _ in asked)
    assert asked[0][1] != asked[-1][1]
    rows = [pair.row() for pair in race.pairs()]
    assert [row["ratio"] for row in rows] == pytest.approx(ratios)
    assert [row["effective_sparsity"] for row in rows] == [0.0, 0.5]
    assert [len(pair.ours) for pair in race.pairs()] == [2, 2]
    assert rows[0]["what"] == "http, 2 streams, dense" and rows[0]["peer"] == "scripted without HTTP"


@pytest.fixture
def our_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of ours, one that streams numbers."""
    server = write_llama_server(tmp_path)

    def command(model: str, port: int, flags: Sequence[str]) -> list[str]:
        return [str(server), "--port", str(port), *flags]

    monkeypatch.setattr(compare_servers, "glass_command", command)
    monkeypatch.setattr(process, "glass_command", command)


SMALL = ["--num-tokens", "2", "--max-others-share", "1", "--dtype", "float32", "--method", "griffin", "--threads", "1"]


@pytest.mark.usefixtures("our_server")
def test_compare_with_vllm(model_dir: Path, vllm_python: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    sizes = ["--prompt-tokens", "4", "--prefill-tokens", "6", "--concurrency", "1,2", "--sparsities", "0"]
    arguments = [str(model_dir), "--vllm-python", str(vllm_python), *SMALL, *sizes, "--json", str(output)]
    assert main(["bench", "compare", *arguments]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["conditions"]["peers"] == [
        {"peer": "vllm bf16", "threads": 1, "vllm": "0.0-fake", "torch": "0.0-fake"}
    ]
    rows = {(row["what"], row["peer"]): row for row in result["rows"]}
    assert {
        ("decode, dense, batch 1", "vllm bf16"),
        ("prefill, 6 tokens", "vllm bf16"),
        ("http, 1 stream, dense", "vllm bf16 without HTTP"),
        ("http, 2 streams, dense", "vllm bf16 without HTTP"),
    } <= set(rows)
    decode = rows["decode, dense, batch 1", "vllm bf16"]
    assert decode["share_of_limit"] > 0 and decode["limit_gb_per_second"] > 0
    assert set(result["disturbance"]) == {"engines", "streams"}


@pytest.mark.usefixtures("our_server")
def test_serving_against_the_engine(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    load = ["--concurrency", "2", "--num-requests", "2", "--prompt-words", "3", "--sparsities", "0,0.5"]
    arguments = [str(model_dir), *SMALL, *load, "--against-engine", "--runner", "torch_runner"]
    assert main(["bench", "serving", *arguments, "--json", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [row["peer"] for row in result["engine"]] == ["own engine without HTTP"] * 2
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["theirs"]) for row in result["engine"])
    assert "quantization" in result["conditions"]
    assert "in the engine alone" in capsys.readouterr().out
    assert main(["bench", "serving", "--url", "http://127.0.0.1:1", "--against-engine"]) == 1
    assert "--against-engine needs MODEL and --concurrency" in capsys.readouterr().err


def test_read_bandwidth_is_of_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glass_core.offline.bench.bandwidth.UNCACHED_BYTES", 4 << 20)
    with ReadBandwidth(2) as bandwidth:
        assert all(bandwidth.measure(size) > 0 for size in (1, 2 << 20, 1 << 40))
        limits = bandwidth.limits()
    assert limits["uncached_bytes"] == 4 << 20 and limits["cached_gb_per_second"] > 0
