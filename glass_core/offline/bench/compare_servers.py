"""The servers of both sides over HTTP, both running the whole time, loaded in turn with the same prompts.

Besides throughput: time to the first token, one stream over HTTP against our own engine without it, the time from start
to ready, and peak memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.compare import Paired, alternate, title_over_http
from glass_core.offline.bench.disturbance import QuietRepeats
from glass_core.offline.bench.llama_cpp import llama_server_command
from glass_core.offline.bench.load.generator import ClosedLoop
from glass_core.offline.bench.load.metrics import summarize
from glass_core.offline.bench.load.process import LOOPBACK, ServerProcess, free_port, glass_command
from glass_core.offline.bench.load.target import Target, target_of
from glass_core.offline.bench.serving import ServingSettings, run_load, warm_up
from glass_core.offline.progress import Progress


@dataclass(frozen=True, slots=True)
class ServerPair:
    """How both servers are started. `model` and `flags` are our server's, `peer` names the other in the rows."""

    model: str
    flags: tuple[str, ...]
    llama_server: Path
    gguf: Path
    num_threads: int
    peer: str


def compare_servers(
    pair: ServerPair,
    settings: ServingSettings,
    progress: Progress,
    *,
    quiet: QuietRepeats,
    engine_speed: Callable[[float], float],
    image_bytes: int | None,
) -> list[dict[str, Any]]:
    """Rows for every concurrency and sparsity: total tokens/s and median time to the first token; then seconds from
    start to ready and peak resident memory.

    `engine_speed` decodes once at a sparsity without HTTP and gives tokens/s; `image_bytes` is the size of the weights
    our server maps.
    """
    starts = [_start_once(pair, settings, repeat) for repeat in range(settings.repeats)]
    concurrencies = [load.concurrency for load in settings.loads if isinstance(load, ClosedLoop)]
    if len(concurrencies) < len(settings.loads):
        raise ConfigurationError("servers are compared under closed loops only")
    with _servers(pair, settings, max(concurrencies)) as (ours, theirs):
        race = _HttpRace(settings, target_at(ours), target_at(theirs), pair.peer, engine_speed)
        with progress.task("comparing servers", settings.repeats) as advance:
            quiet.run(settings.repeats, race.run, race.discard, pids=(ours.pid, theirs.pid), advance=advance)
        pairs = [*race.pairs(), *_memory_pairs(ours, theirs, pair.peer, image_bytes)]
    pairs.append(Paired("start to ready", pair.peer, "s", [our for our, _ in starts], [their for _, their in starts]))
    return [found.row() for found in pairs]


class _HttpRace:
    """Result rows of both sides by concurrency and sparsity; the peer has no sparsity."""

    def __init__(
        self,
        settings: ServingSettings,
        ours: Target,
        theirs: Target,
        peer: str,
        engine_speed: Callable[[float], float],
    ) -> None:
        self._settings, self._ours, self._theirs, self._peer = settings, ours, theirs, peer
        self._engine_speed = engine_speed
        self._engine: dict[float, list[float]] = {sparsity: [] for sparsity in settings.sparsities}
        self._our_rows: dict[tuple[int, float], list[Mapping[str, Any]]] = {}
        self._their_rows: dict[int, list[Mapping[str, Any]]] = {}
        warm_up(ours, settings)
        warm_up(theirs, settings)

    def run(self, repeat: int) -> None:
        alternate(repeat, lambda: self._run_ours(repeat), lambda: self._run_theirs(repeat))

    def discard(self) -> None:
        """Forget the last repeat."""
        rows: list[list[Any]] = [*self._our_rows.values(), *self._their_rows.values()]
        for values in (*rows, *self._engine.values()):
            values.pop()

    def _run_ours(self, repeat: int) -> None:
        for load in self._loads():
            for sparsity in self._settings.sparsities:
                row = measure_load(self._ours, self._settings, load, sparsity, repeat)
                self._our_rows.setdefault((load.concurrency, sparsity), []).append(row)
        for sparsity in self._settings.sparsities:
            self._engine[sparsity].append(self._engine_speed(sparsity))

    def _run_theirs(self, repeat: int) -> None:
        for load in self._loads():
            row = measure_load(self._theirs, self._settings, load, 0.0, repeat)
            self._their_rows.setdefault(load.concurrency, []).append(row)

    def pairs(self) -> list[Paired]:
        pairs = []
        for (concurrency, sparsity), rows in self._our_rows.items():
            title = title_over_http(concurrency, sparsity)
            theirs = self._their_rows[concurrency]
            extra = {"sparsity": sparsity}
            pairs.append(Paired(title, self._peer, "tokens/s", _throughputs(rows), _throughputs(theirs), extra))
            pairs.append(Paired(f"{title}, TTFT", self._peer, "ms", _ttfts(rows), _ttfts(theirs), extra))
            if concurrency == 1:
                pairs += self._against_engine(title, rows, sparsity)
        return pairs

    def _against_engine(self, title: str, rows: Sequence[Mapping[str, Any]], sparsity: float) -> list[Paired]:
        """Nothing when a repeat's answers came in one piece each: then there is no speed of streaming."""
        streaming = [row["decode_tokens_per_second"] for row in rows]
        if None in streaming:
            return []
        title = f"{title}, while streaming"
        return [Paired(title, "own engine", "tokens/s", streaming, self._engine[sparsity], {"sparsity": sparsity})]

    def _loads(self) -> Iterator[ClosedLoop]:
        return (load for load in self._settings.loads if isinstance(load, ClosedLoop))


def measure_load(
    target: Target, settings: ServingSettings, load: ClosedLoop, sparsity: float, repeat: int
) -> Mapping[str, Any]:
    """One load's result row. Raises ConfigurationError unless every request was answered."""
    run = run_load(target, settings, load, sparsity, seed=load_seed(settings, repeat))
    row = summarize(run, settings.slo)
    if row["num_failed"] or row["num_unsent"]:
        raise ConfigurationError(
            f"{target.host}:{target.port} answered {row['num_completed']} requests, {row['num_failed']} failed "
            f"({row['first_error']}), {row['num_unsent']} were not sent in time"
        )
    return row


def load_seed(settings: ServingSettings, repeat: int) -> int:
    """Of a repeat's prompts: every side gets the same."""
    return settings.seed + repeat + 1


def _throughputs(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["tokens_per_second"] for row in rows]


def _ttfts(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["ttft_ms"]["p50"] for row in rows]


def _memory_pairs(ours: ServerProcess, theirs: ServerProcess, peer: str, image_bytes: int | None) -> list[Paired]:
    """Peak resident memory against the peer's, and against the size of our weights."""
    our_rss, their_rss = ours.peak_rss_bytes(), theirs.peak_rss_bytes()
    if our_rss is None or their_rss is None:
        return []
    pairs = [Paired("peak resident memory", peer, "MB", [our_rss / 1e6], [their_rss / 1e6])]
    if image_bytes is not None:
        pairs.append(Paired("peak resident memory", "own weights", "MB", [our_rss / 1e6], [image_bytes / 1e6]))
    return pairs


def target_at(process: ServerProcess) -> Target:
    """Where a started server is loaded."""
    return target_of(f"http://{LOOPBACK}:{process.port}")


def _start_once(pair: ServerPair, settings: ServingSettings, repeat: int) -> tuple[float, float]:
    """Seconds from start to ready of both, one after the other."""
    seconds: dict[str, float] = {}

    def start(side: str, process: ServerProcess) -> None:
        with process:
            seconds[side] = process.start_seconds

    alternate(
        repeat, lambda: start("ours", _our_server(pair, 1)), lambda: start("theirs", _their_server(pair, settings, 1))
    )
    return seconds["ours"], seconds["theirs"]


@contextmanager
def _servers(
    pair: ServerPair, settings: ServingSettings, num_slots: int
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Both servers, ready."""
    with ExitStack() as stack:
        ours = stack.enter_context(_our_server(pair, num_slots))
        yield ours, stack.enter_context(_their_server(pair, settings, num_slots))


def our_server(model: str, flags: Sequence[str], *, num_threads: int, num_slots: int) -> ServerProcess:
    """Our server on a free port, for up to `num_slots` sequences at once."""
    port = free_port()
    sizes = ["--num-threads", str(num_threads), "--max-num-sequences", str(num_slots)]
    return ServerProcess(glass_command(model, port, [*sizes, *flags]), port, "/ready")


def _our_server(pair: ServerPair, num_slots: int) -> ServerProcess:
    return our_server(pair.model, pair.flags, num_threads=pair.num_threads, num_slots=num_slots)


def _their_server(pair: ServerPair, settings: ServingSettings, num_slots: int) -> ServerProcess:
    """With room for the longest answers in every slot."""
    port = free_port()
    command = llama_server_command(
        pair.llama_server,
        pair.gguf,
        port,
        num_threads=pair.num_threads,
        num_slots=num_slots,
        num_tokens=settings.max_sequence_tokens,
    )
    return ServerProcess(command, port, "/health")
