"""Small engines on the FakeRunner, and requests for them."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from glass_core.api import GenerationRequest, SamplingParams, SparsityParams, TokenEvent
from glass_core.config import CacheConfig, EngineConfig, SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.runners.base import Runner
from glass_core.sparsity.budget import UNIFORM, uniform_profile
from glass_core.sparsity.global_stats import GlobalStatistics
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.selection import PlanSelector
from tests.core.sparsity_samples import make_manifest
from tests.fakes_runner import EOS, FakeRunner, plan_key

DENSE = SparsityParams()
GRIFFIN = SparsityParams(sparsity=0.5, method="griffin")
REFINED = SparsityParams(sparsity=0.5, refine=True)


def refinable_statistics(runner: Runner) -> GlobalStatistics:
    """Statistics in which nothing matters but that uniform plans can be refined, up to 0.6."""
    size = (runner.spec.num_layers, runner.spec.intermediate_size)
    ones, points = np.ones(size, np.float32), np.ones((1, len(STAGES), size[0]), np.float32)
    weights = ScoreWeights(np.ones((size[0], runner.spec.hidden_size), np.float32), ones)
    return GlobalStatistics(
        make_manifest(num_layers=size[0], intermediate_size=size[1]),
        ones,
        ones,
        profiles={UNIFORM: uniform_profile(size[0])},
        refinement={UNIFORM: RefinementTable(np.array([0.6], np.float32), points, weights)},
    )


class CountingSelector(PlanSelector):
    """The real selector, of an artifact that has little but thresholds; notes what it selected, fails on demand."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(
            num_layers=runner.spec.num_layers,
            intermediate_size=runner.spec.intermediate_size,
            statistics=refinable_statistics(runner),
            magnitudes=runner.neuron_magnitudes,
        )
        self.num_tokens_seen: list[int] = []
        self.bits_seen: list[bytes] = []
        self.plans: list[str] = []
        self.failures: list[Exception] = []

    def select(self, params: SparsityParams, local: LocalStatistics | None) -> SparsityPlan | None:
        if local is not None:
            self.num_tokens_seen.append(local.num_tokens)
            self.bits_seen.append(bits_of(local))
        if self.failures:
            raise self.failures.pop()
        plan = super().select(params, local)
        self.plans.append(plan_key(plan))
        return plan


def engine_config(
    runner: FakeRunner,
    *,
    scheduler: SchedulerConfig | None = None,
    view_cache_bytes: int = 10_000,
    max_model_len: int | None = None,
    enable_prefix_caching: bool = True,
    prefix_statistics_bytes: int = 10_000,
) -> EngineConfig:
    return EngineConfig(
        model_path=Path("unused"),
        model_name="fake",
        runner="fake",
        dtype="float32",
        max_model_len=max_model_len,
        scheduler=scheduler or SchedulerConfig(max_num_sequences=4, max_step_tokens=8, max_waiting=4),
        cache=CacheConfig(
            block_size=runner.block_size,
            view_cache_bytes=view_cache_bytes,
            enable_prefix_caching=enable_prefix_caching,
            prefix_statistics_bytes=prefix_statistics_bytes,
        ),
    )


def make_engine(
    runner: FakeRunner,
    *,
    scheduler: SchedulerConfig | None = None,
    view_cache_bytes: int = 10_000,
    max_model_len: int | None = None,
    enable_prefix_caching: bool = True,
    prefix_statistics_bytes: int = 10_000,
    selector: PlanSelector | None = None,
) -> Engine:
    config = engine_config(
        runner,
        scheduler=scheduler,
        view_cache_bytes=view_cache_bytes,
        max_model_len=max_model_len,
        enable_prefix_caching=enable_prefix_caching,
        prefix_statistics_bytes=prefix_statistics_bytes,
    )
    return Engine(runner, selector or CountingSelector(runner), config)


def make_request(
    request_id: str = "r",
    prompt: Iterable[int] = (1, 2, 3),
    *,
    max_tokens: int = 4,
    seed: int = 0,
    sparsity: SparsityParams = DENSE,
    ignore_eos: bool = True,
    min_tokens: int = 0,
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(
            max_tokens=max_tokens, seed=seed, stop_token_ids=(EOS,), ignore_eos=ignore_eos, min_tokens=min_tokens
        ),
        sparsity=sparsity,
        arrival_time=time.monotonic(),
    )


def run_to_end(engine: Engine) -> list[TokenEvent]:
    """All events until the engine is idle."""
    events: list[TokenEvent] = []
    for _ in range(2000):
        if not engine.has_work:
            return events
        events += engine.step()
    raise AssertionError("the engine never becomes idle")


def tokens_of(events: Iterable[TokenEvent], request_id: str = "r") -> list[int]:
    return [event.token_id for event in events if event.request_id == request_id and event.token_id is not None]


def bits_of(statistics: LocalStatistics) -> bytes:
    return statistics.sum_abs.tobytes() + statistics.sum_squares.tobytes()


def answer_alone(request: GenerationRequest) -> list[int]:
    """The tokens of a request with a big engine to itself, no chunking and no cache."""
    return serve_alone(request)[0]


def serve_alone(request: GenerationRequest) -> tuple[list[int], list[bytes]]:
    """`answer_alone`, and the bits of the statistics that it selected from, none for a dense one."""
    runner = FakeRunner(num_kv_blocks=64)
    selector = CountingSelector(runner)
    limits = SchedulerConfig(max_num_sequences=1, max_step_tokens=64)
    engine = make_engine(runner, scheduler=limits, enable_prefix_caching=False, selector=selector)
    engine.add(request)
    return tokens_of(run_to_end(engine), request.request_id), selector.bits_seen
