"""The FLOP counters against independent counts of what was really executed, from HTTP requests to `/metrics`.

Of the reference runner torch's own counter sees every matrix product. The native runner's products are out of its
sight: there a second runner executes every row of every step in a step of its own, which says what a plan alone takes,
and what a step together takes is counted from the union of its rows' plans.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig, EngineConfig, SchedulerConfig
from glass_core.engine.client import ThreadedEngineClient
from glass_core.engine.engine import Engine
from glass_core.runners.base import Runner, StepBatch, StepResult, StepRow
from glass_core.runners.native import NativeRunner
from glass_core.runners.native.checkpoint_image import make_image, open_image
from glass_core.runners.torch_runner import load
from glass_core.sparsity.selection import PlanSelector
from glass_core.text import load_text_processor
from server.app import create_app
from server.config import Settings
from tests.tiny_models import save_tiny_model

TIGHT = 12


class CountingRunner:
    """Runs every step as asked and counts what it took, what it would have taken densely, and under each row's plan."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.flops_computed = 0
        self.flops_dense = 0
        self.flops_planned = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


class CountedTorchRunner(CountingRunner):
    """Runs every step twice: as asked, and densely on a shadow; torch's own counter counts both."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(load(config))
        self._shadow = load(config)

    def execute(self, batch: StepBatch) -> StepResult:
        dense = StepBatch(rows=tuple(replace(row, plan=None) for row in batch.rows))
        with FlopCounterMode(display=False) as counter:
            self._shadow.execute(dense)
        self.flops_dense += counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            result = self._runner.execute(batch)
        self.flops_computed += counter.get_total_flops()
        # every row is computed by itself
        self.flops_planned += counter.get_total_flops()
        return result


class CountedNativeRunner(CountingRunner):
    """Runs every step as asked, and each of its rows alone on a shadow, under its plan and densely."""

    def __init__(self, config: EngineConfig) -> None:
        header = open_image(open_prepared(config.model_path), config.dtype)
        super().__init__(NativeRunner(header, config.cache, num_threads=2))
        self._shadow = NativeRunner(header, config.cache, num_threads=2)

    def execute(self, batch: StepBatch) -> StepResult:
        result = self._runner.execute(batch)
        alone = [self._alone(row) for row in batch.rows]
        dense = [self._alone(replace(row, plan=None)) for row in batch.rows]
        self.flops_dense += sum(dense)
        self.flops_planned += sum(alone)
        self.flops_computed += sum(dense) - self._skipped(batch.rows)
        return result

    def _alone(self, row: StepRow) -> int:
        (result,) = self._shadow.execute(StepBatch((row,))).rows
        return result.cost.flops_computed

    def _skipped(self, rows: Sequence[StepRow]) -> int:
        """FLOPs of the neurons that no row of the step keeps."""
        spec = self._runner.spec
        plans = [row.plan for row in rows if row.plan is not None]
        if len(plans) < len(rows):
            return 0
        union = [len(np.unique(np.concatenate(layer))) for layer in zip(*(p.neurons for p in plans), strict=True)]
        num_skipped = spec.num_layers * spec.intermediate_size - sum(union)
        return sum(len(row.token_ids) for row in rows) * num_skipped * 3 * 2 * spec.hidden_size


def total(metrics: str, name: str) -> int:
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(f"{name}{{")))


def requests() -> Sequence[dict[str, Any]]:
    common = {"model": "tiny", "max_tokens": 28, "ignore_eos": True, "temperature": 0}
    return [
        {**common, "prompt": "a longer prompt that needs several chunks of prefill", "glass_sparsity": 0.5},
        {**common, "prompt": "b", "glass_sparsity": 0.3},
        {**common, "prompt": "dense", "glass_sparsity": 0, "max_tokens": 16},
    ]


def save_native_model(folder: Path) -> Path:
    """A tiny model with its weight image; skips where the extension is not built."""
    pytest.importorskip("glass_core.runners.native._native")
    model = save_tiny_model(folder, "llama")
    make_image(open_prepared(model), "int4")
    return model


def make_config(model: Path, kv_blocks: int, kv_value_bytes: int, dtype: str) -> EngineConfig:
    spec = load(EngineConfig(model_path=model, model_name="tiny")).spec
    block_bytes = 2 * spec.num_layers * spec.kv_size * kv_value_bytes * 8
    return EngineConfig(
        model_path=model,
        model_name="tiny",
        dtype=dtype,
        scheduler=SchedulerConfig(max_num_sequences=4, max_step_tokens=16),
        cache=CacheConfig(block_size=8, kv_cache_bytes=kv_blocks * block_bytes),
    )


async def serve(
    runner: CountingRunner, config: EngineConfig, bodies: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], str]:
    """The `glass` reports of these requests, sent at once, and the metrics after them."""
    selector = PlanSelector(
        num_layers=runner.spec.num_layers,
        intermediate_size=runner.spec.intermediate_size,
        statistics=None,
        magnitudes=runner.neuron_magnitudes,
    )
    client = ThreadedEngineClient(Engine(runner, selector, config))
    app = create_app(Settings(model="tiny", default_method="griffin"), client, load_text_processor(config.model_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
        metrics = (await http.get("/metrics")).text
    await client.close()
    assert [answer.status_code for answer in answers] == [200] * len(bodies), [answer.text for answer in answers]
    return [answer.json()["glass"] for answer in answers], metrics


def check(runner: CountingRunner, reports: Sequence[dict[str, Any]], metrics: str) -> None:
    """Counters and reports equal what the runner counted, to the last FLOP."""
    for what, executed in (
        ("dense", runner.flops_dense),
        ("computed", runner.flops_computed),
        ("planned", runner.flops_planned),
    ):
        assert total(metrics, f"glass_flops_{what}_total") == executed
        assert sum(report[f"flops_{what}"] for report in reports) == executed
    assert total(metrics, "glass_flops_saved_total") == runner.flops_dense - runner.flops_computed > 0
    for report in reports:
        assert report["flops_planned"] <= report["flops_computed"] <= report["flops_dense"]
        assert report["flops_saved_ratio_planned"] == pytest.approx(1 - report["flops_planned"] / report["flops_dense"])
    # what is not FFN is the same in all three
    others = {
        total(metrics, f"glass_flops_{what}_total") - total(metrics, f"glass_ffn_flops_{what}_total")
        for what in ("dense", "computed", "planned")
    }
    assert len(others) == 1


@pytest.mark.parametrize("kv_blocks", [256, TIGHT], ids=["roomy", "preempting"])
async def test_flop_metrics_equal_executed_products(tmp_path: Path, kv_blocks: int) -> None:
    config = make_config(save_tiny_model(tmp_path, "llama"), kv_blocks, 4, "auto")
    runner = CountedTorchRunner(config)
    reports, metrics = await serve(runner, config, requests())
    assert (total(metrics, "glass_num_preemptions_total") > 0) == (kv_blocks == TIGHT)
    check(runner, reports, metrics)
    assert runner.flops_planned == runner.flops_computed


@pytest.mark.parametrize("kv_blocks", [256, TIGHT], ids=["roomy", "preempting"])
async def test_native_flop_metrics_count_unions_and_plans(tmp_path: Path, kv_blocks: int) -> None:
    config = make_config(save_native_model(tmp_path), kv_blocks, 2, "int4")
    runner = CountedNativeRunner(config)
    reports, metrics = await serve(runner, config, requests())
    assert (total(metrics, "glass_num_preemptions_total") > 0) == (kv_blocks == TIGHT)
    check(runner, reports, metrics)
    assert runner.flops_planned < runner.flops_computed, "requests of different plans ran together"
    dense = reports[-1]
    assert dense["flops_planned"] == dense["flops_computed"] == dense["flops_dense"]


async def test_a_native_request_by_itself_executes_its_plan(tmp_path: Path) -> None:
    config = make_config(save_native_model(tmp_path), 256, 2, "int4")
    runner = CountedNativeRunner(config)
    reports, metrics = await serve(runner, config, requests()[:1])
    check(runner, reports, metrics)
    assert runner.flops_planned == runner.flops_computed < runner.flops_dense
    for kind in ("ffn_flops", "ffn_bytes"):
        planned, computed = (total(metrics, f"glass_{kind}_{what}_total") for what in ("planned", "computed"))
        assert 0 < planned == computed < total(metrics, f"glass_{kind}_dense_total")
