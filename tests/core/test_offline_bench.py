"""`glass bench decode` on a tiny model: result schema, bytes counted, what is decoded under which plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glass_core.config import EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.bandwidth import ReadBandwidth
from glass_core.offline.bench.decode import DecodeSettings, measure_decode, random_prompts
from glass_core.offline.bench.session import Session
from glass_core.offline.bench.traffic import step_traffic
from glass_core.offline.cli import main
from glass_core.offline.generation import cache_for
from glass_core.offline.progress import SilentProgress
from glass_core.runners.base import StepBatch, StepResult
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.selection import PlanSelector
from tests.tiny_models import VOCAB_SIZE


class RecordingRunner(TorchRunner):
    """Keeps every batch it executes."""

    def __init__(self, model: TorchModel, settings: DecodeSettings) -> None:
        tokens = settings.max_sequence_tokens
        count = settings.batch_size * len(settings.sparsities)
        super().__init__(model, cache_for(model.spec, num_sequences=count, num_tokens=tokens, bytes_per_value=4))
        self.batches: list[StepBatch] = []

    def execute(self, batch: StepBatch) -> StepResult:
        self.batches.append(batch)
        return super().execute(batch)


def session_on(runner: TorchRunner) -> Session:
    selector = PlanSelector(
        num_layers=3, intermediate_size=88, statistics=None, magnitudes=lambda: np.ones((3, 88), np.float32)
    )
    return Session(EngineConfig(Path(), "tiny", runner="torch_runner", dtype="float32"), runner, selector, None)


def test_result_file(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench.json"
    flags = [
        "--sparsities",
        "0,0.5",
        "--num-tokens",
        "3",
        "--repeats",
        "2",
        "--prompt-tokens",
        "5",
        "--dtype",
        "float32",
    ]
    assert main(["bench", "decode", str(model_dir), *flags, "--batch-size", "2", "--json", str(output)]) == 0
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert list(result) == ["conditions", "rows"]
    conditions = result["conditions"]
    assert (conditions["runner"], conditions["quantization"]) == ("torch_runner", "float32")
    assert conditions["command"].startswith("glass bench decode ")
    assert conditions["machine"]["num_cores"] >= 1 and conditions["isa"].startswith("torch ")
    assert conditions["read_bandwidth"]["uncached_gb_per_second"] > 0 and conditions["host"] and "seed" in conditions
    assert conditions["threads"] >= 1
    dense, half = result["rows"]
    assert (dense["sparsity"], half["sparsity"], half["effective_sparsity"]) == (0.0, 0.5, 0.5)
    assert dense["ratio_to_first"] == 1.0
    for row in (dense, half):
        assert row["tokens_per_second_min"] <= row["tokens_per_second"] <= row["tokens_per_second_max"]
        assert row["share_of_limit"] > 0 and row["limit_gb_per_second"] > 0
        assert row["gb_per_second"] == pytest.approx(row["tokens_per_second"] * row["bytes_per_token"] / 1e9)
    assert "tokens/s" in capsys.readouterr().out


def test_sparsities_alternate_and_every_timing_decodes_the_same_positions(model_dir: Path) -> None:
    settings = DecodeSettings(sparsities=(0.0, 0.25), num_tokens=3, prompt_tokens=4, repeats=2)
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    runner = RecordingRunner(model, settings)
    with ReadBandwidth(1) as bandwidth:
        prompts = random_prompts(settings, VOCAB_SIZE)
        measure_decode(session_on(runner), settings, prompts, bandwidth, SilentProgress())
    prefills, warm_up, timed = runner.batches[:2], runner.batches[2:6], runner.batches[6:]
    assert all(row.collect_statistics and row.plan is None for batch in prefills for row in batch.rows)
    assert [batch.rows[0].start for batch in warm_up] == [4, 5, 4, 5]
    sparse = [batch.rows[0].plan is not None for batch in timed]
    assert sparse == [*[False] * 3, *[True] * 3] * 2
    assert [batch.rows[0].start for batch in timed] == [4, 5, 6] * 4
    assert runner.view_bytes_used == 0


def test_step_bytes_are_the_weights_of_the_checkpoint(model_dir: Path) -> None:
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    dense = step_traffic(model.spec, [None], num_keys=0, bytes_per_weight=4)
    # everything is read once, and one row of the tied embedding once more
    assert dense.total_bytes == 4 * (model.weights.num_parameters + model.spec.hidden_size)
    biased = replace(model.spec, qkv_bias=True, attention_output_bias=True, qk_norm=True)
    extra = (4 + 2 * 2) * 12 + 48 + 2 * 12
    assert step_traffic(biased, [None], num_keys=0, bytes_per_weight=4).attention_bytes == (
        dense.attention_bytes + 3 * extra * 4
    )


def test_dense_ffn_is_shared_by_the_batch_and_pruned_ones_are_not(model_dir: Path) -> None:
    spec = TorchModel.load(model_dir, dtype=torch.float32, device="cpu").spec
    neuron_bytes = 3 * spec.hidden_size * 2
    two_dense = step_traffic(spec, [None, None], num_keys=10, bytes_per_weight=2)
    two_pruned = step_traffic(spec, [(10, 20, 30), (5, 5, 5)], num_keys=10, bytes_per_weight=2)
    mixed = step_traffic(spec, [None, (10, 20, 30)], num_keys=10, bytes_per_weight=2)
    assert two_dense.ffn_bytes == 3 * 88 * neuron_bytes
    assert two_pruned.ffn_bytes == 75 * neuron_bytes
    assert mixed.ffn_bytes == (3 * 88 + 60) * neuron_bytes
    assert two_dense.kv_bytes == 2 * 2 * 3 * 10 * spec.kv_size * 2


def test_bad_settings_name_the_field(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="repeats must be at least 1, got 0"):
        DecodeSettings(sparsities=(0.5,), repeats=0)
    with pytest.raises(ConfigurationError, match="sparsities must differ"):
        DecodeSettings(sparsities=(0.5, 0.5))
    assert main(["bench", "decode", str(model_dir), "--runner", "nope"]) == 1
    assert "'nope'" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_refused(model_dir: Path) -> None:
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    settings = DecodeSettings(sparsities=(0.0,), prompt_tokens=4, num_tokens=3)
    runner = RecordingRunner(model, settings)
    prompts = random_prompts(replace(settings, prompt_tokens=400), VOCAB_SIZE)
    with (
        ReadBandwidth(1) as bandwidth,
        pytest.raises(ConfigurationError, match="KV blocks are needed for this batch, the runner has 1"),
    ):
        measure_decode(session_on(runner), settings, prompts, bandwidth, SilentProgress())
