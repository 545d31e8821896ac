"""`glass bench decode --refine` and `--kv-cache-dtype`: who takes turns, what refined answers read, what KV costs."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig, EngineConfig
from glass_core.offline.bench.decode import DecodeSettings, prepare_contestants, random_prompts, run_decode
from glass_core.offline.bench.session import Session, open_session
from glass_core.offline.bench.traffic import kv_position_bytes
from glass_core.offline.cli import main
from glass_core.offline.commands.bench.serving import add_arguments, server_flags
from glass_core.offline.decode_timing import time_decode
from glass_core.offline.progress import SilentProgress
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.extension import why_missing
from glass_core.sparsity.selection import PlanSelector
from tests.core.engine_builders import refinable_statistics
from tests.tiny_models import save_tiny_model

RUNNERS = [("native", "int8"), ("torch_runner", "float32")]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (reason := why_missing()) is not None:
        pytest.skip(reason)
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny") / "llama", "llama")
    make_image(open_prepared(folder), "int8")
    return folder


@contextmanager
def refining_session(model_dir: Path, settings: DecodeSettings, runner: str, dtype: str) -> Iterator[Session]:
    """A session whose artifact has thresholds."""
    config = EngineConfig(model_dir, "tiny", runner=runner, dtype=dtype, num_threads=1)
    tokens, count = settings.max_sequence_tokens, len(settings.subjects) * settings.batch_size
    with open_session(config, num_sequences=count, num_tokens=tokens) as session:
        selector = PlanSelector(
            num_layers=session.spec.num_layers,
            intermediate_size=session.spec.intermediate_size,
            statistics=refinable_statistics(session.runner),
            magnitudes=session.runner.neuron_magnitudes,
        )
        yield replace(session, selector=selector)


def test_refined_answers_take_turns_with_static_and_dense_ones() -> None:
    assert DecodeSettings((0.0, 0.5)).subjects == ((0.0, False), (0.5, False))
    expected = ((0.0, False), (0.3, False), (0.3, True), (0.5, False), (0.5, True))
    assert DecodeSettings((0.3, 0.5), refine=True).subjects == expected
    assert DecodeSettings((0.3, 0.0, 0.5), refine=True).subjects == expected


@pytest.mark.parametrize(("runner", "dtype"), RUNNERS)
def test_a_refined_row_says_what_it_read(model_dir: Path, runner: str, dtype: str) -> None:
    settings = DecodeSettings((0.5,), num_tokens=40, prompt_tokens=6, repeats=2, refine=True)
    with refining_session(model_dir, settings, runner, dtype) as session:
        result = run_decode(session, settings, SilentProgress(), "glass bench decode")
    dense, static, refined = result["rows"]
    assert [row["refine"] for row in result["rows"]] == [False, False, True]
    assert result["conditions"]["refine"] is True
    assert refined["effective_sparsity"] == pytest.approx(0.5, abs=0.05)
    assert refined["effective_sparsity"] != 0.5
    assert dense["ratio_of_bytes"] == 1.0
    for row in (static, refined):
        assert row["ffn_bytes_per_token"] <= dense["ffn_bytes_per_token"]
        # the rest of the step's bytes is the same, and reads can only be more than what is needed
        least = 1 + (dense["bytes_per_token"] - row["bytes_per_token"]) / row["bytes_per_token"]
        assert row["ratio_of_bytes"] >= least - 1e-6 > 0.99
        assert row["ratio_to_first_min"] <= row["ratio_to_first"] <= row["ratio_to_first_max"]


@pytest.mark.parametrize(("runner", "dtype"), RUNNERS)
def test_the_bytes_of_a_refined_answer_are_those_its_cascade_counts(model_dir: Path, runner: str, dtype: str) -> None:
    settings = DecodeSettings((0.5,), num_tokens=8, prompt_tokens=6, repeats=1, refine=True)
    with refining_session(model_dir, settings, runner, dtype) as session:
        prompts = random_prompts(settings, session.spec.vocab_size)
        dense, _, refined = prepare_contestants(session, settings, prompts)
        decoded = time_decode(session.runner, refined.sequences, settings.num_tokens)
        refined.decode(session, settings.num_tokens)
        again = time_decode(session.runner, refined.sequences, settings.num_tokens)
    assert again.ffn_reads == decoded.ffn_reads == refined.ffn_reads
    assert again.planned_ffn_bytes == decoded.planned_ffn_bytes
    assert refined.needed.ffn_bytes == round(decoded.planned_ffn_bytes) <= refined.traffic.ffn_bytes
    assert refined.ffn_reads is not None
    # natively rows are padded and scale vectors shared by 32 neurons
    share = refined.needed.ffn_bytes / dense.needed.ffn_bytes
    assert share == pytest.approx(refined.ffn_reads, abs=0.15 if runner == "native" else 1e-4)


def test_refined_answers_in_a_batch_read_what_they_read_alone(model_dir: Path) -> None:
    alone = DecodeSettings((0.5,), num_tokens=5, prompt_tokens=6, refine=True)
    both = replace(alone, batch_size=2)
    reads = []
    for settings in (alone, both):
        with refining_session(model_dir, settings, "native", "int8") as session:
            prompts = random_prompts(alone, session.spec.vocab_size) * settings.batch_size
            refined = prepare_contestants(session, settings, prompts)[-1]
            refined.decode(session, settings.num_tokens)
            reads.append(refined.ffn_reads)
            assert refined.needed.ffn_bytes <= refined.traffic.ffn_bytes
    assert reads[0] == reads[1]


def test_without_thresholds_the_reason_is_given(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--refine", "--sparsities", "0.5", "--num-tokens", "2", "--prompt-tokens", "4", "--repeats", "1"]
    assert main(["bench", "decode", str(model_dir), *flags]) == 1
    assert "glass_refine is unavailable: there is no artifact" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["decode", "prefill"])
def test_the_type_of_the_kv_cache_reaches_the_runner(model_dir: Path, tmp_path: Path, command: str) -> None:
    output = tmp_path / "out.json"
    flags = ["--prompt-tokens", "5", "--repeats", "1", "--threads", "1", "--kv-cache-dtype", "int8"]
    flags += ["--num-tokens", "2", "--sparsities", "0"] if command == "decode" else []
    assert main(["bench", command, str(model_dir), *flags, "--json", str(output)]) == 0
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert (result["conditions"]["runner"], result["conditions"]["kv_cache_dtype"]) == ("native", "int8")


def test_the_type_of_the_kv_cache_reaches_the_server() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert server_flags(parser.parse_args(["m", "--kv-cache-dtype", "int8"]))[-2:] == ["--kv-cache-dtype", "int8"]


def test_an_int8_cache_needs_the_native_runner(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", str(model_dir), "--dtype", "float32", "--kv-cache-dtype", "int8"]) == 1
    assert "kv_cache_dtype 'int8' needs the native runner" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_bytes_of_a_position_are_those_of_the_runners_blocks(model_dir: Path, dtype: str) -> None:
    from glass_core.runners.native.runner import kv_block_bytes

    spec = open_prepared(model_dir).spec
    for head_dim in (12, 32, 48, 64, 128):
        changed = replace(spec, head_dim=head_dim)
        # blocks of so many slots that nothing is padded
        assert 64 * kv_position_bytes(changed, dtype) == kv_block_bytes(changed, 64, dtype)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_step_reads_its_keys_and_values(model_dir: Path, dtype: str) -> None:
    config = EngineConfig(model_dir, "tiny", runner="native", dtype="int8", cache=CacheConfig(kv_cache_dtype=dtype))
    with open_session(config, num_sequences=2, num_tokens=20) as session:
        assert session.runner.num_kv_blocks == 4
        assert session.traffic([None, None], num_keys=7.5).kv_bytes == 15 * kv_position_bytes(session.spec, dtype)


def test_bytes_of_a_position_by_hand(model_dir: Path) -> None:
    spec = replace(open_prepared(model_dir).spec, num_layers=3, num_kv_heads=2, head_dim=48)
    assert kv_position_bytes(spec, "bf16") == 2 * 3 * 2 * 48 * 2
    assert kv_position_bytes(spec, "int8") == 2 * 3 * 2 * (48 + 2 * 4)
