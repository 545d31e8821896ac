"""`glass bench compare`: our runner and others in one run, taking turns, so that a ratio compares like with like.

Machines drift by more than the differences that matter. So each repeat measures both sides back to back, the order
swaps from repeat to repeat, and the ratio reported is the median of the repeats' own ratios, with their range.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.bandwidth import ReadBandwidth
from glass_core.offline.bench.decode import (
    Contestant,
    DecodeSettings,
    prepare_contestants,
    random_prompts,
    reading,
    release,
    time_contestant,
)
from glass_core.offline.bench.disturbance import QuietRepeats
from glass_core.offline.bench.peers.base import EnginePeer
from glass_core.offline.bench.prefill import PrefillSettings, PromptTimings, prompt_timings, run_prompt
from glass_core.offline.bench.session import Session
from glass_core.offline.bench.spread import paired_ratio, spread
from glass_core.offline.progress import Progress

MIN_REPEATS = 5


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """What both sides do: prompts of `prefill_tokens`, and `num_tokens` tokens decoded after `prompt_tokens`."""

    sparsities: tuple[float, ...] = (0.0, 0.5)
    method: str = "griffin"
    num_tokens: int = 128
    prompt_tokens: int = 32
    prefill_tokens: tuple[int, ...] = (512,)
    repeats: int = MIN_REPEATS
    seed: int = 0
    max_others_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.max_others_share <= 1:
            raise ConfigurationError(f"max_others_share must lie in (0, 1], got {self.max_others_share}")
        if self.repeats < MIN_REPEATS:
            raise ConfigurationError(f"repeats must be at least {MIN_REPEATS} for a median, got {self.repeats}")

    def decode(self) -> DecodeSettings:
        return DecodeSettings(
            sparsities=self.sparsities,
            method=self.method,
            num_tokens=self.num_tokens,
            prompt_tokens=self.prompt_tokens,
            repeats=self.repeats,
            seed=self.seed,
        )

    def prefill(self) -> PrefillSettings:
        return PrefillSettings(prompt_tokens=self.prefill_tokens, repeats=self.repeats, seed=self.seed)

    @property
    def max_sequence_tokens(self) -> int:
        """Positions the longest sequence uses."""
        return max(self.decode().max_sequence_tokens, self.prefill().max_sequence_tokens)


@dataclass(slots=True)
class Paired:
    """One thing measured on both sides, per repeat. `unit` is that of both."""

    what: str
    peer: str
    unit: str = "tokens/s"
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Medians of both sides and the spread of ours / theirs."""
        ratio = paired_ratio(self.ours, self.theirs)
        return {
            "what": self.what,
            "peer": self.peer,
            "unit": self.unit,
            "ours": spread(self.ours).median,
            "theirs": spread(self.theirs).median,
            "ratio": ratio.median,
            "ratio_min": ratio.low,
            "ratio_max": ratio.high,
            **self.extra,
        }


def alternate(repeat: int, ours: Callable[[], None], theirs: Callable[[], None]) -> None:
    """Run both, ours first in even repeats."""
    for side in (ours, theirs) if repeat % 2 == 0 else (theirs, ours):
        side()


def compare_engines(
    session: Session, peers: Sequence[EnginePeer], settings: CompareSettings, quiet: QuietRepeats, progress: Progress
) -> list[dict[str, Any]]:
    """Rows for decode at every sparsity and prefill at every length, against every peer, and for our sparse decode
    against our dense one when 0 is the first sparsity."""
    with ReadBandwidth(session.config.num_threads) as bandwidth:
        race = _Race(session, peers, settings, bandwidth)
        _run(race, peers, settings, quiet, progress)
    race.close()
    return [pair.row() for pair in race.pairs()]


def _run(
    race: "_Race", peers: Sequence[EnginePeer], settings: CompareSettings, quiet: QuietRepeats, progress: Progress
) -> None:
    with progress.task("comparing", settings.repeats) as advance:
        quiet.run(
            settings.repeats,
            lambda repeat: alternate(repeat, race.run_ours, race.run_theirs),
            race.discard,
            pids=[pid for peer in peers for pid in peer.pids],
            advance=advance,
        )


def engine_speed(session: Session, settings: DecodeSettings) -> Callable[[float], float]:
    """A function that decodes once at one of the settings' sparsities, batch 1, and gives tokens per second."""
    contestants = prepare_contestants(session, settings, random_prompts(settings, session.spec.vocab_size))
    by_sparsity = {contestant.sparsity: contestant for contestant in contestants}
    return lambda sparsity: settings.num_tokens / by_sparsity[sparsity].decode(session, settings.num_tokens)


class _Race:
    """Both sides' measurements of every repeat."""

    def __init__(
        self, session: Session, peers: Sequence[EnginePeer], settings: CompareSettings, bandwidth: ReadBandwidth
    ) -> None:
        self._session, self._peers, self._settings, self._bandwidth = session, peers, settings, bandwidth
        decode = settings.decode()
        prompts = random_prompts(decode, session.spec.vocab_size)
        self._decode_prompt = prompts[0]
        self._contestants = prepare_contestants(session, decode, prompts)
        last = self._contestants[-1].sequences[-1]
        self._first_free_block = last.block_table[-1] + 1
        self._prompts = prompt_timings(session, settings.prefill())
        self._their_decode: dict[str, list[float]] = {peer.label: [] for peer in peers}
        self._their_prefill: dict[str, list[list[float]]] = {peer.label: [] for peer in peers}
        for prompt in self._prompts:  # untimed
            self._time_prompt(prompt)
            prompt.prefill.clear()

    def run_ours(self) -> None:
        for contestant in self._contestants:
            time_contestant(self._session, contestant, self._settings.num_tokens, self._bandwidth)
        for prompt in self._prompts:
            self._time_prompt(prompt)

    def run_theirs(self) -> None:
        for peer in self._peers:
            speed = peer.decode_speed(self._decode_prompt, num_tokens=self._settings.num_tokens)
            self._their_decode[peer.label].append(speed)
            prompts = [prompt.prompt for prompt in self._prompts]
            self._their_prefill[peer.label].append(peer.prefill_speeds(prompts))

    def discard(self) -> None:
        """Forget the last repeat."""
        timed: list[list[Any]] = [prompt.prefill for prompt in self._prompts]
        timed += [values for contestant in self._contestants for values in (contestant.seconds, contestant.limits)]
        for values in (*timed, *self._their_decode.values(), *self._their_prefill.values()):
            values.pop()

    def close(self) -> None:
        release(self._session.runner, self._contestants)

    def pairs(self) -> list[Paired]:
        """Everything measured, each as ours against one peer's."""
        pairs = [self._decode_pair(contestant, peer.label) for peer in self._peers for contestant in self._contestants]
        for peer in self._peers:
            pairs += [self._prefill_pair(index, peer.label) for index in range(len(self._prompts))]
        first, *others = self._contestants
        if first.sparsity == 0:
            pairs += [self._own_pair(contestant, first) for contestant in others]
        return pairs

    def _time_prompt(self, prompt: PromptTimings) -> None:
        start = time.perf_counter()
        run_prompt(self._session, self._settings.prefill(), prompt.prompt, first_block=self._first_free_block)
        prompt.prefill.append(time.perf_counter() - start)

    def _speeds(self, contestant: Contestant) -> list[float]:
        return [self._settings.num_tokens / seconds for seconds in contestant.seconds]

    def _decode_pair(self, contestant: Contestant, peer: str) -> Paired:
        return Paired(
            f"decode, {title_of(contestant.sparsity)}, batch 1",
            peer,
            ours=self._speeds(contestant),
            theirs=self._their_decode[peer],
            extra=self._sparsities(contestant),
        )

    def _own_pair(self, contestant: Contestant, dense: Contestant) -> Paired:
        return Paired(
            f"decode, {title_of(contestant.sparsity)}, batch 1",
            "own dense",
            ours=self._speeds(contestant),
            theirs=self._speeds(dense),
            extra=self._sparsities(contestant),
        )

    def _sparsities(self, contestant: Contestant) -> dict[str, Any]:
        return {
            "sparsity": contestant.sparsity,
            "effective_sparsity": contestant.effective_sparsity,
            **reading(contestant, self._settings.decode()),
        }

    def _prefill_pair(self, index: int, peer: str) -> Paired:
        length = len(self._prompts[index].prompt)
        ours = [length / seconds for seconds in self._prompts[index].prefill]
        theirs = [speeds[index] for speeds in self._their_prefill[peer]]
        return Paired(f"prefill, {length} tokens", peer, ours=ours, theirs=theirs)


def title_of(sparsity: float) -> str:
    """A sparsity in the rows' titles."""
    return "dense" if sparsity == 0 else f"sparsity {sparsity:g}"


def title_over_http(concurrency: int, sparsity: float) -> str:
    """So many streams at a time, in the rows' titles."""
    return f"http, {concurrency} stream{'s' if concurrency > 1 else ''}, {title_of(sparsity)}"
