"""Load on a server: closed loop (a fixed number of requests in flight) or open loop (Poisson arrivals).

An open loop does not wait for answers, so a server that falls behind shows it; latencies count from the moment a
request was due, not from when a late generator sent it. Everything is bounded: the number of requests and the time.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.exchange import Exchange, exchange

MAX_REQUESTS = 100_000
MAX_CONCURRENCY = 1024


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` requests in flight until all are sent."""

    concurrency: int

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise ConfigurationError(f"concurrency must lie in [1, {MAX_CONCURRENCY}], got {self.concurrency}")


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Poisson arrivals at `rate` requests per second."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 10_000:
            raise ConfigurationError(f"a rate must lie in (0, 10000] requests per second, got {self.rate}")


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class LoadRun:
    """The exchanges of one load. `seconds` is the wall time until the last answer, `cpu_seconds` what the generator
    itself used meanwhile, `num_unsent` how many requests the time limit left over."""

    exchanges: tuple[Exchange, ...]
    seconds: float
    cpu_seconds: float
    num_unsent: int


async def apply_load(
    host: str, port: int, requests: Sequence[bytes], load: Load, *, max_seconds: float, seed: int
) -> LoadRun:
    """Send the requests in order under the load; what is unfinished after `max_seconds` is cut off."""
    if not 1 <= len(requests) <= MAX_REQUESTS:
        raise ConfigurationError(f"the number of requests must lie in [1, {MAX_REQUESTS}], got {len(requests)}")
    exchanges: list[Exchange] = []
    cpu, start = time.process_time(), time.perf_counter()
    if isinstance(load, ClosedLoop):
        tasks = _closed_loop(host, port, iter(requests), load, exchanges)
    else:
        tasks = _open_loop(host, port, requests, _arrivals(load.rate, start, seed), exchanges)
    await _run_until(tasks, max_seconds)
    return LoadRun(
        tuple(exchanges),
        time.perf_counter() - start,
        time.process_time() - cpu,
        len(requests) - len(exchanges),
    )


async def _run_until(tasks: list[asyncio.Task[None]], max_seconds: float) -> None:
    """Wait for the tasks; after the limit cancel them, which cuts their connections. Raises what a task raised."""
    _, pending = await asyncio.wait(tasks, timeout=max_seconds)
    for task in pending:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def _closed_loop(
    host: str, port: int, requests: Iterator[bytes], load: ClosedLoop, exchanges: list[Exchange]
) -> list[asyncio.Task[None]]:
    async def work() -> None:
        for request in requests:
            exchanges.append(await exchange(host, port, request, time.perf_counter()))
            if _was_cancelled():
                return

    return [asyncio.create_task(work()) for _ in range(load.concurrency)]


def _open_loop(
    host: str, port: int, requests: Sequence[bytes], arrivals: Iterator[float], exchanges: list[Exchange]
) -> list[asyncio.Task[None]]:
    async def send(request: bytes, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        exchanges.append(await exchange(host, port, request, due))

    return [asyncio.create_task(send(request, due)) for request, due in zip(requests, arrivals, strict=False)]


def _was_cancelled() -> bool:
    """An exchange that is cut off returns what it has; the task's own end is up to the caller."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _arrivals(rate: float, start: float, seed: int) -> Iterator[float]:
    """Times of a Poisson process: its gaps are exponential. The first request is due at once."""
    random = Random(seed)  # noqa: S311  a load pattern, not a secret
    gaps = (random.expovariate(rate) for _ in itertools.count())
    return itertools.accumulate(gaps, initial=start)
