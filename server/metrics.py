"""Prometheus metrics on an explicit registry, in vLLM's names with our prefix.

Three sources: totals the engine counts are read from `engine.stats()` at scrape time; a sequence's histograms are
observed when its terminal event arrives; HTTP metrics come from a middleware. No label ever holds a request, a prompt
or a raw path.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glass_core.api import EngineInfo, EngineStats, Finish, FinishReason, StepCost

# a small model decodes a token in 2 to 5 ms, a queue can hold a request for minutes
TOKEN_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SELECTION_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
COUNT_BUCKETS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
# nats per token: from hardly another answer to a broken one
KL_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
RATIO_BUCKETS = tuple(step / 20 for step in range(1, 21))

SEQUENCE_LABELS = ("model_name", "method")
UNMATCHED = "unmatched"
# HTTP knows more methods, a hostile client invents them
HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Snapshot = Callable[[], tuple[EngineInfo, EngineStats] | None]


class ServerMetrics:
    """All collectors of one server. `snapshot` gives the engine's numbers, or None while it loads."""

    def __init__(self, snapshot: Snapshot, *, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(EngineCollector(snapshot))
        build = Gauge("glass_build_info", "The value is always 1.", ["version"], registry=self.registry)
        build.labels(version).set(1)
        self._success = self._counter(
            "request_success", "Sequences that ended, by reason.", *SEQUENCE_LABELS, "finished_reason"
        )
        self._refined = self._counter(
            "refined_requests", "Ended sequences whose tokens chose neurons.", *SEQUENCE_LABELS
        )
        self._rejections = self._counter(
            "admission_rejections", "Requests refused before they ran.", "model_name", "reason"
        )
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", LATENCY_BUCKETS)
        self._itl = self._histogram("inter_token_latency_seconds", "Gap between two tokens.", TOKEN_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end.", LATENCY_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to first step.", LATENCY_BUCKETS)
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "First step to end of prefill.", LATENCY_BUCKETS
        )
        self._decode = self._histogram("request_decode_time_seconds", "First token to end.", LATENCY_BUCKETS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens.", COUNT_BUCKETS)
        self._generation_tokens = self._histogram("request_generation_tokens", "Generated tokens.", COUNT_BUCKETS)
        self._selection = self._histogram("selection_seconds", "Time to choose neurons.", SELECTION_BUCKETS)
        self._sparsity = self._histogram("effective_sparsity", "Share of neurons left out.", RATIO_BUCKETS)
        self._automatic = self._histogram("auto_sparsity", "Sparsity that auto chose, 0 for none.", RATIO_BUCKETS)
        self._expected_kl = self._histogram(
            "expected_kl", "Expected KL from the dense model, nats per token, where it was measured.", KL_BUCKETS
        )
        self._lambda = self._histogram("requested_lambda", "Weight of the global ranking.", RATIO_BUCKETS)
        self._overlap = self._histogram(
            "plan_global_overlap_ratio", "Share of a plan the global ranking alone would also keep.", RATIO_BUCKETS
        )
        self._http_requests = self._counter("http_requests", "HTTP answers.", "handler", "method", "status")
        self._http_seconds = Histogram(
            "glass_http_request_duration_seconds",
            "Time from request to the last byte of its answer.",
            ["handler"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)

    def observe_finish(self, model_name: str, finish: Finish, token_times: Sequence[float]) -> None:
        """Record a sequence that ended; `token_times` are the times of its tokens, ascending."""
        report, timings = finish.report, finish.timings
        labels = (model_name, report.method)
        self._success.labels(*labels, finish.reason.value).inc()
        if report.refine:
            self._refined.labels(*labels).inc()
        self._prompt_tokens.labels(*labels).observe(finish.num_prompt_tokens)
        self._generation_tokens.labels(*labels).observe(finish.num_generated_tokens)
        self._e2e.labels(*labels).observe(timings.e2e_seconds)
        self._sparsity.labels(*labels).observe(report.sparsity)
        self._selection.labels(*labels).observe(report.selection_seconds)
        _observe_known(self._automatic, labels, None if report.max_kl is None else report.sparsity_requested)
        _observe_known(self._expected_kl, labels, report.expected_kl)
        _observe_known(self._ttft, labels, timings.ttft_seconds)
        _observe_known(self._queue, labels, timings.queue_seconds)
        _observe_known(self._prefill, labels, timings.prefill_seconds)
        _observe_known(self._decode, labels, timings.decode_seconds)
        _observe_known(self._lambda, labels, report.lambda_)
        _observe_known(self._overlap, labels, report.global_overlap)
        gaps = self._itl.labels(*labels)
        for earlier, later in pairwise(token_times):
            gaps.observe(later - earlier)

    def count_abandoned(self, model_name: str, method: str) -> None:
        """Record a sequence whose client left, or whose request failed, before its end."""
        self._success.labels(model_name, method, FinishReason.ABORTED.value).inc()

    def count_rejection(self, model_name: str, reason: str) -> None:
        """Record a request refused at admission."""
        self._rejections.labels(model_name, reason).inc()

    def observe_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Record an HTTP answer; `handler` is the route's template."""
        known = method if method in HTTP_METHODS else "other"
        self._http_requests.labels(handler, known, str(status)).inc()
        self._http_seconds.labels(handler).observe(seconds)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"glass_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"glass_{name}", help_text, SEQUENCE_LABELS, buckets=buckets, registry=self.registry)


class EngineCollector(Collector):
    """The engine's own counters, read when Prometheus asks."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        found = self._snapshot()
        if found is None:
            return
        info, stats = found
        yield from _gauges(info.model_name, stats)
        yield from _counters(info.model_name, stats)
        yield from _costs(info.model_name, stats.cost_by_method)
        yield _engine_info(info)


def _gauges(model_name: str, stats: EngineStats) -> Iterable[Metric]:
    usage = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
    values = (
        ("num_requests_running", "Sequences being computed.", stats.num_requests_running),
        ("num_requests_waiting", "Sequences in the queue.", stats.num_requests_waiting),
        ("kv_cache_usage_ratio", "Share of KV cache blocks in use.", usage),
        ("view_bytes_used", "Bytes of packed weight views.", stats.view_bytes_used),
    )
    for name, help_text, value in values:
        gauge = GaugeMetricFamily(f"glass_{name}", help_text, labels=["model_name"])
        gauge.add_metric([model_name], value)
        yield gauge


def _counters(model_name: str, stats: EngineStats) -> Iterable[Metric]:
    values = (
        ("prompt_tokens", "Prompt tokens, cached ones included.", stats.num_prompt_tokens),
        ("generation_tokens", "Tokens generated.", stats.num_generated_tokens),
        ("num_preemptions", "Sequences set back for lack of memory.", stats.num_preemptions),
        ("engine_steps", "Steps of the engine.", stats.num_steps),
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
    )
    for name, help_text, value in values:
        counter = CounterMetricFamily(f"glass_{name}", help_text, labels=["model_name"])
        counter.add_metric([model_name], value)
        yield counter


def _costs(model_name: str, cost_by_method: Mapping[str, StepCost]) -> Iterable[Metric]:
    values: tuple[tuple[str, str, Callable[[StepCost], int]], ...] = (
        ("flops_dense", "FLOPs the dense model would have needed.", lambda cost: cost.flops_dense),
        ("flops_computed", "FLOPs computed.", lambda cost: cost.flops_computed),
        ("flops_planned", "FLOPs each request's plan alone would have needed.", lambda cost: cost.flops_planned),
        ("flops_saved", "FLOPs saved.", lambda cost: cost.flops_saved),
        ("ffn_flops_dense", "FFN FLOPs the dense model would have needed.", lambda cost: cost.ffn_flops_dense),
        ("ffn_flops_computed", "FFN FLOPs computed.", lambda cost: cost.ffn_flops_computed),
        (
            "ffn_flops_planned",
            "FFN FLOPs each request's plan alone would have needed.",
            lambda cost: cost.ffn_flops_planned,
        ),
        (
            "ffn_bytes_dense",
            "Bytes of FFN weights the dense model would have read.",
            lambda cost: cost.ffn_bytes_dense,
        ),
        ("ffn_bytes_computed", "Bytes of FFN weights read.", lambda cost: cost.ffn_bytes_computed),
        (
            "ffn_bytes_planned",
            "Bytes of FFN weights each request's plan alone would have read.",
            lambda cost: cost.ffn_bytes_planned,
        ),
    )
    for name, help_text, pick in values:
        counter = CounterMetricFamily(f"glass_{name}", help_text, labels=SEQUENCE_LABELS)
        for method, cost in sorted(cost_by_method.items()):
            counter.add_metric([model_name, method], pick(cost))
        yield counter


def _engine_info(info: EngineInfo) -> Metric:
    labels = ["model_name", "runner", "dtype", "device", "artifact"]
    gauge = GaugeMetricFamily("glass_engine_info", "The loaded engine; the value is always 1.", labels=labels)
    gauge.add_metric([info.model_name, info.runner, info.dtype, info.device, info.artifact or "none"], 1)
    return gauge


def _observe_known(histogram: Histogram, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        histogram.labels(*labels).observe(value)


class HttpMetricsMiddleware:
    """Counts answers by route template, so that a scan of random paths makes no series."""

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # until an answer begins: the client left first

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.monotonic()
        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            self._metrics.observe_http(_handler(scope), scope["method"], status, time.monotonic() - started)


def _handler(scope: Scope) -> str:
    path = UNMATCHED
    with suppress(KeyError, AttributeError):
        path = scope["route"].path
    return path
