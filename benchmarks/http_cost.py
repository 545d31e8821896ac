"""CPU time the server spends per streamed token outside the engine: event hand-over, text, JSON, HTTP.

    python benchmarks/http_cost.py --streams 8,32

A real server process runs the real client, detokenizer, routes and uvicorn over an engine that computes nothing: every
`--step-ms` it gives each running sequence one token, from its own thread, as the real one does. This process is the
load: one raw connection per stream, request after request. What is reported is CPU time of the server process (not wall
time, so a busy machine disturbs it little), less what the scripted engine itself used, divided by the tokens.
"""

import argparse
import asyncio
import json
import multiprocessing
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from glass_core.api import (
    EngineInfo,
    EngineStats,
    Finish,
    FinishReason,
    GenerationRequest,
    RequestTimings,
    SparsityReport,
    StepCost,
    TokenEvent,
)
from glass_core.config import EngineConfig
from glass_core.engine.client import ThreadedEngineClient
from glass_core.engine.engine import Engine
from glass_core.text import load_text_processor
from server.__main__ import uvicorn_config
from server.app import create_app
from server.config import Settings
from server.log import configure_logging

TEXT = "The quick brown fox jumps over the lazy dog, and a café in Zürich serves 3 cups of coffee — “twice” a day. "
INFO = EngineInfo(
    model_name="scripted",
    fingerprint="f" * 64,
    runner="scripted",
    dtype="none",
    device="cpu",
    max_model_len=8192,
    vocab_size=1 << 20,
    num_layers=1,
    intermediate_size=1,
    num_parameters=1,
    methods=("dense",),
    profiles=("uniform",),
)
MODEL = Path.home() / ".cache/glass/models/smollm2-135m"


class Meter(Protocol):
    """A float shared between two processes."""

    value: float


@dataclass(slots=True)
class _Running:
    request: GenerationRequest
    num_generated: int = 0
    reason: FinishReason | None = None


class ScriptedEngine:
    """Stands in for `Engine` below `ThreadedEngineClient`: a step waits, then gives every sequence its next token."""

    def __init__(self, token_ids: Sequence[int], step_seconds: float, engine_seconds: Meter) -> None:
        self.config = EngineConfig(model_path=Path(), model_name=INFO.model_name)
        self.info = INFO
        self._token_ids = token_ids
        self._step_seconds = step_seconds
        self._engine_seconds = engine_seconds
        self._sequences: dict[str, _Running] = {}
        self.num_waiting = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def unfinished(self) -> tuple[str, ...]:
        return tuple(self._sequences)

    def check(self, request: GenerationRequest) -> None:
        """Everything is servable."""

    def add(self, request: GenerationRequest) -> None:
        self._sequences[request.request_id] = _Running(request)

    def finish(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._sequences:
            self._sequences[request_id].reason = reason

    abort = finish

    def step(self) -> list[TokenEvent]:
        time.sleep(self._step_seconds)
        started = time.thread_time()
        events = self.take_events()
        self._engine_seconds.value += time.thread_time() - started
        return events

    def take_events(self) -> list[TokenEvent]:
        now = time.monotonic()
        return [self._next_event(sequence, now) for sequence in tuple(self._sequences.values())]

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None:
        """Nothing to free."""

    def _next_event(self, sequence: _Running, now: float) -> TokenEvent:
        request = sequence.request
        token_id = self._token_ids[sequence.num_generated % len(self._token_ids)]
        sequence.num_generated += 1
        if sequence.num_generated < request.sampling.max_tokens and sequence.reason is None:
            return TokenEvent(request.request_id, now, token_id)
        del self._sequences[request.request_id]
        timings = RequestTimings(request.arrival_time, now, request.arrival_time, request.arrival_time, now)
        report = SparsityReport("dense", 0.0, 0.0, None, "uniform", StepCost(), 0.0)
        reason = sequence.reason or FinishReason.LENGTH
        finish = Finish(reason, len(request.prompt_token_ids), sequence.num_generated, timings, report)
        return TokenEvent(request.request_id, now, token_id, finish)


@dataclass(slots=True)
class Stream:
    """One connection that sends `num_requests` requests, each when the answer before it is complete."""

    address: tuple[str, int]
    body: bytes
    num_requests: int
    connection: socket.socket = field(init=False)
    _tail: bytes = b""

    def __post_init__(self) -> None:
        self.connection = socket.create_connection(self.address)

    def start(self) -> None:
        self.num_requests -= 1
        self._tail = b""
        self.connection.sendall(self.body)

    def read(self) -> bool:
        """Read what has come. False when the last answer is complete."""
        data = self.connection.recv(1 << 16)
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._tail!r}")
        self._tail = (self._tail + data)[-256:]
        if not self._tail.endswith(b"\r\n0\r\n\r\n"):
            return True
        if b"data: [DONE]" not in self._tail:
            raise RuntimeError(f"an answer ended with {self._tail!r}")
        if self.num_requests:
            self.start()
            return True
        return False


def serve(listener: socket.socket, model_dir: Path, step_seconds: float, engine_seconds: Meter) -> None:
    """The server process: the product's app and uvicorn settings, on a scripted engine."""
    text = load_text_processor(model_dir)
    scripted = ScriptedEngine(text.encode(TEXT), step_seconds, engine_seconds)
    client = ThreadedEngineClient(cast(Engine, scripted))
    settings = Settings(model=INFO.model_name, access_log=False)
    configure_logging()
    config = uvicorn_config(create_app(settings, client, text), settings)
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


def request_bytes(num_tokens: int) -> bytes:
    body = {
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def run_streams(streams: Sequence[Stream]) -> None:
    """All streams at once, until each has its last answer."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.connection, selectors.EVENT_READ, stream)
            stream.start()
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.read():
                    selector.unregister(key.fileobj)


def cpu_seconds(process_id: int) -> float:
    """CPU time a process has used, in all its threads (Linux: the clock id of another process)."""
    return time.clock_gettime((~process_id << 3) | 2)


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU per token: of everything but the engine's step, and of the step."""

    server: float
    engine: float
    tokens_per_second: float


def measure(process_id: int, engine_seconds: Meter, streams: Sequence[Stream], num_tokens: int) -> Cost:
    total = sum(stream.num_requests for stream in streams) * num_tokens
    cpu, engine, wall = cpu_seconds(process_id), engine_seconds.value, time.monotonic()
    run_streams(streams)
    cpu, engine, wall = cpu_seconds(process_id) - cpu, engine_seconds.value - engine, time.monotonic() - wall
    return Cost((cpu - engine) / total * 1e6, engine / total * 1e6, total / wall)


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[tuple[int, tuple[str, int], Meter]]:
    """A server process; yields its id, its address and the engine's CPU time."""
    context = multiprocessing.get_context("spawn")
    engine_seconds = context.Value("d", 0.0)
    # With the protocol named, as in a server that binds by itself: asyncio sets TCP_NODELAY only then.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        process = context.Process(
            target=serve, args=(listener, arguments.model, arguments.step_ms / 1e3, engine_seconds)
        )
        process.start()
        try:
            assert process.pid is not None
            yield process.pid, listener.getsockname(), engine_seconds
        finally:
            process.terminate()
            process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="8,32", help="numbers of streams at a time (default: 8,32)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer (default: 128)")
    parser.add_argument("--requests", type=int, default=8, help="requests of a stream (default: 8)")
    parser.add_argument("--step-ms", type=float, default=5.0, help="time between two tokens of a stream (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the median counts (default: 5)")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder with a tokenizer (default: smollm2-135m)")
    arguments = parser.parse_args()
    body = request_bytes(arguments.tokens)
    with server(arguments) as (process_id, address, engine_seconds):
        for num_streams in map(int, arguments.streams.split(",")):
            costs = []
            for repeat in range(arguments.repeats + 1):
                num_requests = arguments.requests if repeat else 1  # the first only warms up
                streams = [Stream(address, body, num_requests) for _ in range(num_streams)]
                costs.append(measure(process_id, engine_seconds, streams, arguments.tokens))
                for stream in streams:
                    stream.connection.close()
            print(describe(num_streams, costs[1:]), flush=True)


def describe(num_streams: int, costs: Sequence[Cost]) -> str:
    server_costs = sorted(cost.server for cost in costs)
    engine = statistics.median(cost.engine for cost in costs)
    rate = statistics.median(cost.tokens_per_second for cost in costs)
    return (
        f"{num_streams:3} streams: {statistics.median(server_costs):6.1f} us of CPU per token outside the engine "
        f"({server_costs[0]:.1f} to {server_costs[-1]:.1f}), {engine:.1f} in the engine, at {rate:.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
