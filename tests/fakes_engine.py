"""FakeEngineClient: `api.EngineClient` without an engine. Scripted tokens, failures, gates; remembers what happened."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

from glass_core.api import (
    DENSE_METHOD,
    EngineInfo,
    EngineStats,
    Finish,
    FinishReason,
    GenerationRequest,
    RequestTimings,
    SparsityReport,
    StepCost,
    TokenEvent,
    TokenLogprobs,
)
from glass_core.errors import EngineUnavailableError

Script = Callable[[GenerationRequest], Sequence[int]]

FAKE_INFO = EngineInfo(
    model_name="tiny",
    fingerprint="f" * 64,
    runner="fake",
    dtype="float32",
    device="cpu",
    max_model_len=256,
    vocab_size=300,
    num_layers=2,
    intermediate_size=8,
    num_parameters=1000,
    methods=("griffin", "dense"),
    profiles=("uniform",),
    unavailable_methods={"a_glass": "no artifact"},
    isa="fake_isa",
    num_threads=3,
    kv_cache_dtype="fake_kv",
)


def fake_cost(request: GenerationRequest) -> StepCost:
    """1000 dense FLOPs, 600 of them in the FFN. A sparse request computes 60 FFN FLOPs more than its plan alone would,
    as if a batch had needed them."""
    planned = 600 if request.sparsity.is_dense else round(600 * request.sparsity.density)
    computed = min(planned + 60, 600)
    return StepCost(1000, 400 + computed, 600, computed, 60, computed // 10, planned, planned // 10)


@dataclass(slots=True)
class FakeEngineClient:
    """Every request generates the tokens `script` gives for it, then stops; `max_tokens` ends it earlier.

    `submit_errors` are raised by the next submissions, one each (None: accept). `gate`, when set to an unset event,
    holds every stream before the token number `gate_at`. A stream raises `failure` instead of token `failure_at`.
    """

    script: Script
    info: EngineInfo = FAKE_INFO
    submit_errors: list[Exception | None] = field(default_factory=list)
    gate: asyncio.Event | None = None
    gate_at: int = 0
    failure: Exception | None = None
    failure_at: int = 0
    dead: bool = False
    draining: bool = False
    requests: list[GenerationRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    finish_calls: dict[str, FinishReason] = field(default_factory=dict)
    cost_by_method: dict[str, StepCost] = field(default_factory=dict)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=len(self.running),
            kv_blocks_total=4,
            kv_blocks_used=1,
            cost_by_method=self.cost_by_method,
        )

    def check_health(self) -> None:
        if self.dead:
            raise EngineUnavailableError("the engine thread is dead")

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        error = self.submit_errors.pop(0) if self.submit_errors else None
        if error is not None:
            raise error
        if self.draining:
            raise EngineUnavailableError("draining")
        self.requests.append(request)
        self.running.add(request.request_id)
        self.idle.clear()
        return FakeStream(self, request)

    def finish(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self.running:
            self.finish_calls[request_id] = reason

    async def drain(self, timeout_seconds: float) -> bool:
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.idle.wait(), timeout_seconds)
        return not self.running

    def forget(self, request_id: str) -> None:
        """A request is over."""
        self.running.discard(request_id)
        if not self.running:
            self.idle.set()

    async def close(self) -> None:
        self.dead = True


class FakeStream(AsyncGenerator[TokenEvent, None]):
    """A class, because closing a generator that never started would tell nobody."""

    def __init__(self, engine: FakeEngineClient, request: GenerationRequest) -> None:
        self._engine = engine
        self._request = request
        self._tokens = list(engine.script(request))[: request.sampling.max_tokens]
        self._num_sent = 0

    async def asend(self, value: None) -> TokenEvent:
        engine, request_id = self._engine, self._request.request_id
        if request_id not in engine.running:
            raise StopAsyncIteration
        if engine.gate is not None and self._num_sent >= engine.gate_at:
            await engine.gate.wait()
        await asyncio.sleep(0)
        if engine.failure is not None and self._num_sent >= engine.failure_at:
            engine.forget(request_id)
            raise engine.failure
        return self._next_event()

    def _next_event(self) -> TokenEvent:
        request_id, now = self._request.request_id, time.monotonic()
        asked = self._engine.finish_calls.get(request_id)
        if asked is not None or self._num_sent >= len(self._tokens):
            return TokenEvent(request_id, now, finish=self._finish(asked or FinishReason.STOP))
        token_id = self._tokens[self._num_sent]
        self._num_sent += 1
        is_stop = token_id in self._request.sampling.stop_token_ids and not self._request.sampling.ignore_eos
        if is_stop or self._num_sent == self._request.sampling.max_tokens:
            reason = FinishReason.STOP if is_stop else FinishReason.LENGTH
            return TokenEvent(request_id, now, token_id, self._finish(reason), self._logprobs(token_id))
        return TokenEvent(request_id, now, token_id, logprobs=self._logprobs(token_id))

    def _logprobs(self, token_id: int) -> TokenLogprobs | None:
        """-0.25 for the drawn token, the first of the most probable ones; then tokens 1, 2, … at -2, -3, …"""
        count = self._request.sampling.num_logprobs
        if count is None:
            return None
        others = ((other, -1.0 - other) for other in range(1, count))
        return TokenLogprobs(-0.25, ((token_id, -0.25), *others) if count else ())

    def _finish(self, reason: FinishReason) -> Finish:
        self._engine.forget(self._request.request_id)
        arrival = self._request.arrival_time
        first = None if self._num_sent == 0 else arrival + 0.03
        return Finish(
            reason=reason,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_generated_tokens=self._num_sent,
            timings=RequestTimings(arrival, arrival + 0.1, arrival + 0.01, arrival + 0.02, first),
            report=self._report(),
        )

    def _report(self) -> SparsityReport:
        asked = self._request.sparsity
        report = SparsityReport(
            method=asked.method,
            sparsity_requested=asked.sparsity,
            sparsity=asked.sparsity,
            lambda_=None if asked.refine else 0.5 if asked.lambda_ is None else asked.lambda_,
            profile=asked.profile,
            refine=asked.refine and not asked.is_dense,
            cost=fake_cost(self._request),
            selection_seconds=0.001,
            global_overlap=0.75,
            max_kl=asked.max_kl,
            expected_kl=asked.expected_kl,
        )
        if asked.is_dense:
            return replace(report, method=DENSE_METHOD, sparsity=0.0, lambda_=None, global_overlap=None, refine=False)
        return report

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> TokenEvent:
        await self.aclose()
        return await super().athrow(typ, val, tb)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        if self._request.request_id in self._engine.running:
            self._engine.forget(self._request.request_id)
            self._engine.aborted.append(self._request.request_id)
