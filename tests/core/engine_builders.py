"""Small engines on the FakeRunner, and requests for them."""

import time
from collections.abc import Iterable
from pathlib import Path

from glass_core.api import GenerationRequest, SamplingParams, SparsityParams, TokenEvent
from glass_core.config import CacheConfig, EngineConfig, SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.runners.base import Runner
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector
from tests.fakes_runner import EOS, FakeRunner, plan_key

DENSE = SparsityParams()
GRIFFIN = SparsityParams(sparsity=0.5, method="griffin")


class CountingSelector(PlanSelector):
    """The real selector without an artifact; notes what it selected and fails on demand."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(
            num_layers=runner.spec.num_layers,
            intermediate_size=runner.spec.intermediate_size,
            statistics=None,
            magnitudes=runner.neuron_magnitudes,
        )
        self.num_tokens_seen: list[int] = []
        self.bits_seen: list[bytes] = []
        self.plans: list[str] = []
        self.failures: list[Exception] = []

    def select(self, params: SparsityParams, local: LocalStatistics) -> SparsityPlan | None:
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
