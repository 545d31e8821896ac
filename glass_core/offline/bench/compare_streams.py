"""Many streams at once: our server over HTTP against engines without HTTP, taking turns with the same prompts.

The peers are other engines in processes of their own, and our own engine: the ratio to it is what the server, its text
and the load generator cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glass_core.offline.bench.compare import Paired, alternate, title_over_http
from glass_core.offline.bench.compare_servers import load_seed, measure_load, target_at
from glass_core.offline.bench.disturbance import QuietRepeats
from glass_core.offline.bench.load.generator import ClosedLoop
from glass_core.offline.bench.load.process import ServerProcess
from glass_core.offline.bench.load.target import Target, word_prompts
from glass_core.offline.bench.peers.base import StreamPeer
from glass_core.offline.bench.serving import WARM_UP_TOKENS, ServingSettings, warm_up
from glass_core.offline.progress import Progress

Encode = Callable[[str], Sequence[int]]


@dataclass(slots=True)
class _Point:
    """One load at one sparsity: our tokens/s and effective sparsity per repeat."""

    load: ClosedLoop
    sparsity: float
    speeds: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)


class StreamRace:
    """Measures both sides of every repeat; `encode` gives the token ids the server makes of a prompt."""

    def __init__(self, target: Target, peers: Sequence[StreamPeer], settings: ServingSettings, encode: Encode) -> None:
        self._target, self._peers, self._settings, self._encode = target, peers, settings, encode
        loads = [load for load in settings.loads if isinstance(load, ClosedLoop)]
        self._points = [_Point(load, sparsity) for load in loads for sparsity in settings.sparsities]
        self._theirs: dict[tuple[str, int, float], list[float]] = {
            (peer.label, point.load.concurrency, _followed(peer, point.sparsity)): []
            for peer in peers
            for point in self._points
        }
        self._warm_up()

    def run(self, repeat: int) -> None:
        alternate(repeat, lambda: self._run_ours(repeat), lambda: self._run_theirs(repeat))

    def discard(self) -> None:
        """Forget the last repeat."""
        for values in (*(point.speeds for point in self._points), *self._theirs.values()):
            values.pop()
        for point in self._points:
            point.effective.pop()

    def pairs(self) -> list[Paired]:
        """Every point against every peer."""
        return [self._pair(peer, point) for peer in self._peers for point in self._points]

    def _warm_up(self) -> None:
        """Short answers at every load, untimed: engines compile for batch sizes they meet first."""
        warm_up(self._target, self._settings)
        for peer in self._peers:
            for _, concurrency, sparsity in [key for key in self._theirs if key[0] == peer.label]:
                prompts = self._prompts(concurrency, repeat=-1)
                peer.stream_speed(prompts, num_tokens=WARM_UP_TOKENS, concurrency=concurrency, sparsity=sparsity)

    def _run_ours(self, repeat: int) -> None:
        for point in self._points:
            row = measure_load(self._target, self._settings, point.load, point.sparsity, repeat)
            point.speeds.append(row["tokens_per_second"])
            point.effective.append(row["effective_sparsity"] or 0.0)

    def _run_theirs(self, repeat: int) -> None:
        loads = {point.load.concurrency: point.load for point in self._points}
        for peer in self._peers:
            for label, concurrency, sparsity in self._theirs:
                if label != peer.label:
                    continue
                prompts = self._prompts(self._settings.requests_of(loads[concurrency]), repeat)
                speed = peer.stream_speed(
                    prompts, num_tokens=self._settings.num_tokens, concurrency=concurrency, sparsity=sparsity
                )
                self._theirs[label, concurrency, sparsity].append(speed)

    def _prompts(self, count: int, repeat: int) -> list[Sequence[int]]:
        """Those our server gets in this repeat."""
        words = word_prompts(count, self._settings.prompt_words, load_seed(self._settings, repeat))
        return [self._encode(text) for text in words]

    def _pair(self, peer: StreamPeer, point: _Point) -> Paired:
        concurrency = point.load.concurrency
        theirs = self._theirs[peer.label, concurrency, _followed(peer, point.sparsity)]
        what = title_over_http(concurrency, point.sparsity)
        effective = sum(point.effective) / len(point.effective)
        extra = {"sparsity": point.sparsity, "effective_sparsity": effective}
        return Paired(what, f"{peer.label} without HTTP", "tokens/s", point.speeds, theirs, extra)


def compare_streams(
    server: ServerProcess,
    peers: Sequence[StreamPeer],
    settings: ServingSettings,
    encode: Encode,
    *,
    quiet: QuietRepeats,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows for every closed loop, sparsity and peer, and peak resident memory against each peer's. The server and the
    peers are ready and stay loaded."""
    race = StreamRace(target_at(server), peers, settings, encode)
    pids = [server.pid, *(pid for peer in peers for pid in peer.pids)]
    with progress.task("comparing streams", settings.repeats) as advance:
        quiet.run(settings.repeats, race.run, race.discard, pids=pids, advance=advance)
    return [pair.row() for pair in [*race.pairs(), *_memory_pairs(server, peers)]]


def _memory_pairs(server: ServerProcess, peers: Sequence[StreamPeer]) -> list[Paired]:
    ours = server.peak_rss_bytes()
    pairs = []
    for peer in peers:
        theirs = peer.peak_rss_bytes()
        if ours is not None and theirs is not None:
            pairs.append(Paired("peak resident memory", peer.label, "MB", [ours / 1e6], [theirs / 1e6]))
    return pairs


def _followed(peer: StreamPeer, sparsity: float) -> float:
    """The sparsity a peer computes at when asked for this one."""
    return sparsity if peer.prunes else 0.0
