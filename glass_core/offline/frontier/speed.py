"""Decoding speed of all points, taking turns: batch 1, greedy, after the prompt of a scored answer.

Every repeat times every point once, in an order that turns around from repeat to repeat. A refined sequence's
thresholds are adjusted token by token as in the server, so its reads are those promised, and that costs what it costs.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from glass_core.api import SamplingParams
from glass_core.config import EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.disturbance import QuietRepeats
from glass_core.offline.bench.session import Session, open_session
from glass_core.offline.decode_timing import time_decode
from glass_core.offline.frontier.points import OwnPoint, Point, RivalPoint
from glass_core.offline.generation import OfflineSequence, lay_out, prefill
from glass_core.offline.progress import Progress
from glass_core.runners.base import Runner

_WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """`prompt` are token ids; `num_tokens` are decoded after it, `repeats` times."""

    prompt: tuple[int, ...]
    num_tokens: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("num_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")


def measure_speeds(
    config: EngineConfig, points: Sequence[Point], settings: SpeedSettings, quiet: QuietRepeats, progress: Progress
) -> None:
    """Fill in the `speeds` of all points, one per repeat. Every format of ours is loaded once and stays loaded."""
    with ExitStack() as stack:
        contestants: list[_Own | _Rival] = [
            *_own_contestants(stack, config, points, settings),
            *(_Rival(point, settings) for point in points if isinstance(point, RivalPoint)),
        ]
        with progress.task("measuring speed", settings.repeats) as advance:
            quiet.run(
                settings.repeats,
                lambda repeat: _run_all(contestants if repeat % 2 == 0 else contestants[::-1]),
                lambda: _forget_last(points),
                advance=advance,
            )


def _run_all(contestants: "Sequence[_Own | _Rival]") -> None:
    for contestant in contestants:
        contestant.run()


def _forget_last(points: Sequence[Point]) -> None:
    for point in points:
        point.speeds.pop()


@dataclass(frozen=True, slots=True)
class _Rival:
    point: RivalPoint
    settings: SpeedSettings

    def run(self) -> None:
        speed = self.point.peer.decode_speed(self.settings.prompt, num_tokens=self.settings.num_tokens)
        self.point.speeds.append(speed)


@dataclass(frozen=True, slots=True)
class _Own:
    point: OwnPoint
    runner: Runner
    sequence: OfflineSequence
    num_tokens: int

    def run(self) -> None:
        self.point.speeds.append(self.num_tokens / time_decode(self.runner, [self.sequence], self.num_tokens).seconds)


def _own_contestants(
    stack: ExitStack, config: EngineConfig, points: Sequence[Point], settings: SpeedSettings
) -> list[_Own]:
    by_format: dict[str, list[OwnPoint]] = {}
    for point in points:
        if isinstance(point, OwnPoint):
            by_format.setdefault(point.format, []).append(point)
    longest = len(settings.prompt) + settings.num_tokens + 1
    found = []
    for name, group in by_format.items():
        of_format = replace(config, dtype=name)
        session = stack.enter_context(open_session(of_format, num_sequences=len(group), num_tokens=longest))
        found += _prepared(session, group, settings)
    return found


def _prepared(session: Session, points: Sequence[OwnPoint], settings: SpeedSettings) -> list[_Own]:
    """Prompts run, plans chosen, a few tokens decoded untimed."""
    sampling = SamplingParams(max_tokens=settings.num_tokens + 1, seed=0, temperature=0.0, ignore_eos=True)
    sequences = lay_out([settings.prompt] * len(points), [sampling] * len(points))
    prefill(session.runner, sequences)
    found = []
    for point, sequence in zip(points, sequences, strict=True):
        sequence.plan = session.selector.select(point.params, sequence.statistics)
        time_decode(session.runner, [sequence], min(_WARM_UP_TOKENS, settings.num_tokens))
        found.append(_Own(point, session.runner, sequence, settings.num_tokens))
    return found
