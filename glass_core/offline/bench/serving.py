"""`glass bench serving`: latency and throughput of a server under load, over HTTP, at several loads and sparsities."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.generator import ClosedLoop, Load, LoadRun, OpenLoop, apply_load
from glass_core.offline.bench.load.metrics import Slo, summarize
from glass_core.offline.bench.load.target import Target, word_prompts
from glass_core.offline.progress import Progress
from glass_core.offline.provenance import surroundings

WARM_UP_REQUESTS, WARM_UP_TOKENS = 2, 8
SPARE_TOKENS = 64  # room around what is counted: special tokens


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """What to send. Every load is applied at every sparsity, with `num_requests` requests (default: 4 per concurrent
    request, at least 8; 32 in an open loop), for at most `max_seconds`."""

    loads: tuple[Load, ...] = (ClosedLoop(1),)
    sparsities: tuple[float, ...] = (0.0,)
    method: str | None = None
    prompt_words: int = 32
    num_tokens: int = 64
    num_requests: int | None = None
    max_seconds: float = 120.0
    repeats: int = 1
    seed: int = 0
    slo: Slo = field(default_factory=Slo)

    def __post_init__(self) -> None:
        for name in ("prompt_words", "num_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_requests is not None and self.num_requests < 1:
            raise ConfigurationError(f"num_requests must be at least 1, got {self.num_requests}")
        if not 0 < self.max_seconds <= 3600:
            raise ConfigurationError(f"max_seconds must lie in (0, 3600], got {self.max_seconds}")
        if not self.loads:
            raise ConfigurationError("no load: give --concurrency, --rates or both")

    def requests_of(self, load: Load) -> int:
        """How many requests a load gets."""
        if self.num_requests is not None:
            return self.num_requests
        return max(8, 4 * load.concurrency) if isinstance(load, ClosedLoop) else 32

    @property
    def max_concurrency(self) -> int:
        """Requests that may be in flight at once, as far as the loads bound it; 16 for open loops."""
        return max(load.concurrency if isinstance(load, ClosedLoop) else 16 for load in self.loads)

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of a prompt and its answer at most; the tokenizer may split words in two."""
        return 2 * self.prompt_words + self.num_tokens + SPARE_TOKENS

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["loads"] = [describe(load) for load in self.loads]
        return values


def describe(load: Load) -> dict[str, str | float]:
    """A load's fields of a result row."""
    if isinstance(load, ClosedLoop):
        return {"load": "closed", "concurrency": load.concurrency}
    return {"load": "open", "rate": load.rate}


def serving_result(
    target: Target, settings: ServingSettings, progress: Progress, served: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """The result file's content: `conditions` and `rows`. `served` says what runs behind the target."""
    rows = measure_serving(target, settings, progress)
    conditions = {"model": target.model, **served, **settings.as_json(), **surroundings(command)}
    return {"conditions": conditions, "rows": rows}


def served_conditions(target: Target) -> dict[str, Any]:
    """What our server says about its engine; nothing for other servers."""
    try:
        with httpx.Client(trust_env=False, timeout=10.0) as client:
            answer = client.get(f"http://{target.host}:{target.port}/version")
            return _engine_conditions(answer.json()) if answer.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}


def _engine_conditions(version: Any) -> dict[str, Any]:
    """`/version` whole, and from it the fields that results of the other benchmarks have too."""
    engine = version.get("engine") if isinstance(version, dict) else None
    if not isinstance(engine, dict):
        return {"server": version}
    own = {name: name for name in ("runner", "dtype", "device", "kv_cache_dtype", "isa")}
    names = {**own, "threads": "num_threads"}
    return {"server": version, **{name: engine[field] for name, field in names.items() if field in engine}}


def measure_serving(target: Target, settings: ServingSettings, progress: Progress) -> list[dict[str, Any]]:
    """A row per repeat, load and sparsity. Repeats are the outer loop, so that a slow minute hits all alike."""
    warm_up(target, settings)
    points = list(_points(settings))
    rows = []
    with progress.task("serving", len(points)) as advance:
        for index, (repeat, load, sparsity) in enumerate(points):
            run = run_load(target, settings, load, sparsity, seed=settings.seed + index + 1)
            row = {**describe(load), "repeat": repeat, "sparsity": sparsity, **summarize(run, settings.slo)}
            if not row["num_completed"]:
                raise ConfigurationError(f"no request was answered: {row['first_error'] or 'none ended in time'}")
            rows.append(row)
            advance()
    return rows


def run_load(target: Target, settings: ServingSettings, load: Load, sparsity: float, *, seed: int) -> LoadRun:
    """Apply one load once. The seed decides prompts and arrivals."""
    requests = _requests(target, settings, settings.requests_of(load), sparsity, seed)
    return asyncio.run(
        apply_load(target.host, target.port, requests, load, max_seconds=settings.max_seconds, seed=seed)
    )


def warm_up(target: Target, settings: ServingSettings) -> None:
    """A few short answers at every sparsity, untimed."""
    for sparsity in settings.sparsities:
        extra = _glass_fields(target, settings, sparsity)
        prompts = word_prompts(WARM_UP_REQUESTS, settings.prompt_words, seed=settings.seed)
        requests = [target.request(prompt, max_tokens=WARM_UP_TOKENS, seed=0, extra=extra) for prompt in prompts]
        load = ClosedLoop(WARM_UP_REQUESTS)
        asyncio.run(apply_load(target.host, target.port, requests, load, max_seconds=settings.max_seconds, seed=0))


def _points(settings: ServingSettings) -> Iterator[tuple[int, Load, float]]:
    for repeat in range(settings.repeats):
        for load in settings.loads:
            for sparsity in settings.sparsities:
                yield repeat, load, sparsity


def _requests(target: Target, settings: ServingSettings, count: int, sparsity: float, seed: int) -> Sequence[bytes]:
    extra = _glass_fields(target, settings, sparsity)
    prompts = word_prompts(count, settings.prompt_words, seed)
    return [
        target.request(prompt, max_tokens=settings.num_tokens, seed=seed + index, extra=extra)
        for index, prompt in enumerate(prompts)
    ]


def _glass_fields(target: Target, settings: ServingSettings, sparsity: float) -> dict[str, Any]:
    """Our fields of a request. A dense one to another server has none, for it may refuse what it does not know; our own
    has to be told, for its default may be sparse."""
    if not sparsity:
        return {"glass_sparsity": 0.0} if target.is_ours else {}
    method = {} if settings.method is None else {"glass_method": settings.method}
    return {"glass_sparsity": sparsity, **method}


def loads_of(concurrencies: Sequence[int], rates: Sequence[float]) -> tuple[Load, ...]:
    """Closed loops, then open ones."""
    return (*map(ClosedLoop, concurrencies), *map(OpenLoop, rates))
