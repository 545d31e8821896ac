"""The FLOP counters against an independent count of the matrix products that torch really executed."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch.utils.flop_counter import FlopCounterMode

from glass_core.config import CacheConfig, EngineConfig, SchedulerConfig
from glass_core.engine.client import ThreadedEngineClient
from glass_core.engine.engine import Engine
from glass_core.runners.base import StepBatch, StepResult
from glass_core.runners.torch_runner import load
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.selection import PlanSelector
from glass_core.text import load_text_processor
from server.app import create_app
from server.config import Settings
from tests.tiny_models import save_tiny_model

TIGHT = 12


class CountingRunner:
    """Runs every step twice: as asked, and densely on a shadow; torch's own counter counts both."""

    def __init__(self, config: EngineConfig) -> None:
        self._runner: TorchRunner = load(config)
        self._shadow: TorchRunner = load(config)
        self.flops_computed = 0
        self.flops_dense = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def execute(self, batch: StepBatch) -> StepResult:
        dense = StepBatch(rows=tuple(replace(row, plan=None) for row in batch.rows))
        with FlopCounterMode(display=False) as counter:
            self._shadow.execute(dense)
        self.flops_dense += counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            result = self._runner.execute(batch)
        self.flops_computed += counter.get_total_flops()
        return result


def total(metrics: str, name: str) -> int:
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(f"{name}{{")))


def requests() -> Sequence[dict[str, Any]]:
    common = {"model": "tiny", "max_tokens": 24, "ignore_eos": True, "temperature": 0}
    return [
        {**common, "prompt": "a longer prompt that needs several chunks of prefill", "glass_sparsity": 0.5},
        {**common, "prompt": "b", "glass_sparsity": 0.3},
        {**common, "prompt": "dense", "glass_sparsity": 0},
    ]


@pytest.mark.parametrize("kv_blocks", [256, TIGHT], ids=["roomy", "preempting"])
async def test_flop_metrics_equal_executed_products(tmp_path: Path, kv_blocks: int) -> None:
    model = save_tiny_model(tmp_path, "llama")
    probe = load(EngineConfig(model_path=model, model_name="tiny"))
    spec = probe.spec
    block_bytes = 2 * spec.num_layers * spec.kv_size * 4 * 8
    config = EngineConfig(
        model_path=model,
        model_name="tiny",
        scheduler=SchedulerConfig(max_num_sequences=4, max_step_tokens=16),
        cache=CacheConfig(block_size=8, kv_cache_bytes=kv_blocks * block_bytes),
    )
    runner = CountingRunner(config)
    selector = PlanSelector(
        num_layers=spec.num_layers,
        intermediate_size=spec.intermediate_size,
        statistics=None,
        magnitudes=runner.neuron_magnitudes,
    )
    client = ThreadedEngineClient(Engine(runner, selector, config))
    app = create_app(Settings(model="tiny", default_method="griffin"), client, load_text_processor(model))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in requests()))
        metrics = (await http.get("/metrics")).text
    await client.close()

    assert (total(metrics, "glass_num_preemptions_total") > 0) == (kv_blocks == TIGHT)
    assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
    reports = [answer.json()["glass"] for answer in answers]
    assert total(metrics, "glass_flops_dense_total") == runner.flops_dense
    assert total(metrics, "glass_flops_computed_total") == runner.flops_computed
    assert total(metrics, "glass_flops_saved_total") == runner.flops_dense - runner.flops_computed > 0
    assert sum(report["flops_dense"] for report in reports) == runner.flops_dense
    assert sum(report["flops_computed"] for report in reports) == runner.flops_computed
