"""The servers of both sides over HTTP, both running the whole time, loaded in turn with the same prompts.

Besides throughput: time to the first token, one stream over HTTP against our own engine without it, peak memory, and
the time from start to ready.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.compare import Paired, alternate
from glass_core.offline.bench.llama_cpp import llama_server_command
from glass_core.offline.bench.load.generator import ClosedLoop
from glass_core.offline.bench.load.metrics import summarize
from glass_core.offline.bench.load.process import LOOPBACK, ServerProcess, free_port, glass_command
from glass_core.offline.bench.load.target import Target, target_of
from glass_core.offline.bench.serving import ServingSettings, run_load, warm_up
from glass_core.offline.progress import Progress

_MAX_TOKENS_PER_WORD = 2  # room for words the tokenizer splits
_SPARE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ServerPair:
    """How both servers are started. `model` and `flags` are our server's."""

    model: str
    flags: tuple[str, ...]
    llama_server: Path
    gguf: Path
    num_threads: int


def compare_servers(pair: ServerPair, settings: ServingSettings, progress: Progress) -> list[dict[str, Any]]:
    """Rows for every concurrency and sparsity: total tokens/s and median time to the first token; then peak resident
    memory and seconds from start to ready."""
    concurrencies = [load.concurrency for load in settings.loads if isinstance(load, ClosedLoop)]
    if len(concurrencies) < len(settings.loads):
        raise ConfigurationError("servers are compared under closed loops only")
    with _servers(pair, settings, max(concurrencies)) as (ours, theirs):
        race = _HttpRace(settings, _target(ours), _target(theirs), pair.gguf.name)
        with progress.task("comparing servers", settings.repeats) as advance:
            for repeat in range(settings.repeats):
                alternate(repeat, lambda: race.run_ours(repeat), lambda: race.run_theirs(repeat))  # noqa: B023
                advance()
        pairs = [*race.pairs(), *_process_pairs(ours, theirs, pair.gguf.name)]
    return [found.row() for found in pairs]


class _HttpRace:
    """Result rows of both sides by concurrency and sparsity; the peer has no sparsity."""

    def __init__(self, settings: ServingSettings, ours: Target, theirs: Target, peer: str) -> None:
        self._settings, self._ours, self._theirs, self._peer = settings, ours, theirs, peer
        self._our_rows: dict[tuple[int, float], list[Mapping[str, Any]]] = {}
        self._their_rows: dict[int, list[Mapping[str, Any]]] = {}
        warm_up(ours, settings)
        warm_up(theirs, settings)

    def run_ours(self, repeat: int) -> None:
        for load in self._loads():
            for sparsity in self._settings.sparsities:
                row = self._measure(self._ours, load, sparsity, repeat)
                self._our_rows.setdefault((load.concurrency, sparsity), []).append(row)

    def run_theirs(self, repeat: int) -> None:
        for load in self._loads():
            row = self._measure(self._theirs, load, 0.0, repeat)
            self._their_rows.setdefault(load.concurrency, []).append(row)

    def pairs(self) -> list[Paired]:
        pairs = []
        for (concurrency, sparsity), rows in self._our_rows.items():
            title = f"http, {concurrency} stream{'s' if concurrency > 1 else ''}, sparsity {sparsity:g}"
            theirs = self._their_rows[concurrency]
            pairs.append(self._pair(title, "tokens/s", _throughputs(rows), _throughputs(theirs)))
            pairs.append(self._pair(f"{title}: time to first token", "ms", _ttfts(rows), _ttfts(theirs)))
        return pairs

    def _pair(self, what: str, unit: str, ours: list[float], theirs: list[float]) -> Paired:
        return Paired(what, self._peer, unit, ours, theirs)

    def _loads(self) -> Iterator[ClosedLoop]:
        return (load for load in self._settings.loads if isinstance(load, ClosedLoop))

    def _measure(self, target: Target, load: ClosedLoop, sparsity: float, repeat: int) -> Mapping[str, Any]:
        run = run_load(target, self._settings, load, sparsity, seed=self._settings.seed + repeat + 1)
        row = summarize(run, self._settings.slo)
        if row["num_failed"] or row["num_unsent"]:
            raise ConfigurationError(
                f"{target.host}:{target.port} answered {row['num_completed']} requests, {row['num_failed']} failed "
                f"({row['first_error']}), {row['num_unsent']} were not sent in time"
            )
        return row


def _throughputs(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["tokens_per_second"] for row in rows]


def _ttfts(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["ttft_ms"]["p50"] for row in rows]


def _process_pairs(ours: ServerProcess, theirs: ServerProcess, peer: str) -> list[Paired]:
    pairs = [Paired("start to ready", peer, "s", [ours.start_seconds], [theirs.start_seconds])]
    our_rss, their_rss = ours.peak_rss_bytes(), theirs.peak_rss_bytes()
    if our_rss is not None and their_rss is not None:
        pairs.append(Paired("peak resident memory", peer, "MB", [our_rss / 1e6], [their_rss / 1e6]))
    return pairs


def _target(process: ServerProcess) -> Target:
    return target_of(f"http://{LOOPBACK}:{process.port}")


@contextmanager
def _servers(
    pair: ServerPair, settings: ServingSettings, num_slots: int
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Both servers, ready."""
    num_tokens = _MAX_TOKENS_PER_WORD * settings.prompt_words + settings.num_tokens + _SPARE_TOKENS
    our_port, their_port = free_port(), free_port()
    flags = ["--num-threads", str(pair.num_threads), "--max-num-sequences", str(num_slots), *pair.flags]
    command = llama_server_command(
        pair.llama_server,
        pair.gguf,
        their_port,
        num_threads=pair.num_threads,
        num_slots=num_slots,
        num_tokens=num_tokens,
    )
    with ExitStack() as stack:
        ours = stack.enter_context(ServerProcess(glass_command(pair.model, our_port, flags), our_port, "/ready"))
        theirs = stack.enter_context(ServerProcess(command, their_port, "/health"))
        yield ours, theirs
