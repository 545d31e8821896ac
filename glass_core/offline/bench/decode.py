"""Decode speed at several sparsities, measured so that their ratios are fair.

All sparsities' sequences are prefilled once; then each repeat times every sparsity in turn, so a slow minute of the
machine hits all of them alike. A timed run decodes the same tokens every time: it restarts from the end of the prompt.
After each, as many bytes as one of its steps reads are read by nothing but a loop: the limit it is held against.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from glass_core.api import SamplingParams, SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.bandwidth import ReadBandwidth
from glass_core.offline.bench.session import Session
from glass_core.offline.bench.spread import paired_ratio, spread
from glass_core.offline.bench.traffic import StepTraffic
from glass_core.offline.generation import OfflineSequence, decode_step, lay_out, prefill
from glass_core.offline.progress import Progress
from glass_core.runners.base import Runner


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What to measure. Tokens per second are of the whole batch."""

    sparsities: tuple[float, ...]
    method: str = "griffin"
    num_tokens: int = 64
    prompt_tokens: int = 32
    batch_size: int = 1
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_tokens", "prompt_tokens", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(set(self.sparsities)) != len(self.sparsities):
            raise ConfigurationError(f"sparsities must differ, got {self.sparsities}")

    @property
    def max_sequence_tokens(self) -> int:
        """Positions one sequence uses: prompt, its first token, the decoded ones."""
        return self.prompt_tokens + self.num_tokens + 1


@dataclass(slots=True)
class Contestant:
    """The batch of one sparsity; per repeat its seconds and the machine's read bandwidth in GB/s right after, at the
    size of its steps: `traffic`."""

    sparsity: float
    sequences: list[OfflineSequence]
    traffic: StepTraffic
    seconds: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def effective_sparsity(self) -> float:
        plan = self.sequences[0].plan
        return 0.0 if plan is None else plan.sparsity


def run_decode(session: Session, settings: DecodeSettings, progress: Progress, command: str) -> dict[str, Any]:
    """The result file's content: `conditions` and `rows`, for seeded random prompts."""
    prompts = random_prompts(settings, session.spec.vocab_size)
    with ReadBandwidth(session.config.num_threads) as bandwidth:
        rows = measure_decode(session, settings, prompts, bandwidth, progress)
        limits = bandwidth.limits()
    conditions = {**session.conditions(asdict(settings), command), "read_bandwidth": limits}
    return {"conditions": conditions, "rows": rows}


def measure_decode(
    session: Session,
    settings: DecodeSettings,
    prompts: Sequence[Sequence[int]],
    bandwidth: ReadBandwidth,
    progress: Progress,
) -> list[dict[str, float | int]]:
    """One result row per sparsity. `prompts` has batch_size prompts of prompt_tokens tokens."""
    contestants = prepare_contestants(session, settings, prompts)
    with progress.task("decoding", settings.repeats * len(contestants)) as advance:
        for _ in range(settings.repeats):
            for contestant in contestants:
                time_contestant(session, contestant, settings.num_tokens, bandwidth)
                advance()
    release(session.runner, contestants)
    return [_row(settings, contestant, contestants[0]) for contestant in contestants]


def random_prompts(settings: DecodeSettings, vocab_size: int) -> list[list[int]]:
    """Seeded token ids: a benchmark of speed needs no meaning."""
    import numpy as np  # noqa: PLC0415  only here

    generator = np.random.default_rng(settings.seed)
    drawn: list[list[int]] = generator.integers(vocab_size, size=(settings.batch_size, settings.prompt_tokens)).tolist()
    return drawn


def prepare_contestants(
    session: Session, settings: DecodeSettings, prompts: Sequence[Sequence[int]]
) -> list[Contestant]:
    """Prefill every sparsity's sequences, select their plans, and decode a little, untimed: builds views, touches
    pages. Raises ConfigurationError when the runner has no room for them."""
    sampling = SamplingParams(max_tokens=settings.num_tokens + 1, seed=settings.seed, temperature=0.0, ignore_eos=True)
    count = len(settings.sparsities)
    sequences = lay_out([*prompts] * count, [sampling] * (len(prompts) * count))
    prefill(session.runner, sequences)
    contestants = []
    for index, sparsity in enumerate(settings.sparsities):
        own = sequences[index * len(prompts) : (index + 1) * len(prompts)]
        params = SparsityParams(sparsity=sparsity, method=settings.method, seed=settings.seed)
        for sequence in own:
            assert sequence.statistics is not None
            sequence.plan = session.selector.select(params, sequence.statistics)
        num_keys = settings.prompt_tokens + (settings.num_tokens + 1) / 2
        traffic = session.traffic([sequence.plan for sequence in own], num_keys=num_keys)
        contestants.append(Contestant(sparsity, own, traffic))
        time_decode(session.runner, own, min(2, settings.num_tokens))
    return contestants


def release(runner: Runner, contestants: Sequence[Contestant]) -> None:
    """Drop the views of all sequences."""
    for contestant in contestants:
        for sequence in contestant.sequences:
            runner.release(sequence.sequence_id)


def time_decode(runner: Runner, sequences: Sequence[OfflineSequence], num_tokens: int) -> float:
    """Seconds for num_tokens decode steps from the end of the prompt."""
    for sequence in sequences:
        del sequence.generated[1:]
    start = time.perf_counter()
    for _ in range(num_tokens):
        decode_step(runner, sequences)
    return time.perf_counter() - start


def time_contestant(session: Session, contestant: Contestant, num_tokens: int, bandwidth: ReadBandwidth) -> None:
    """One more repeat: decode, then read as many bytes."""
    contestant.seconds.append(time_decode(session.runner, contestant.sequences, num_tokens))
    contestant.limits.append(bandwidth.measure(contestant.traffic.total_bytes))


def reading(contestant: Contestant, settings: DecodeSettings) -> dict[str, float | int]:
    """Bytes a token costs, the GB/s that makes, and its share of the limit: the median of the repeats' own shares."""
    step_bytes = contestant.traffic.total_bytes
    achieved = [step_bytes * settings.num_tokens / seconds / 1e9 for seconds in contestant.seconds]
    return {
        "bytes_per_token": round(step_bytes / settings.batch_size),
        "ffn_bytes_per_token": round(contestant.traffic.ffn_bytes / settings.batch_size),
        "gb_per_second": spread(achieved).median,
        "limit_gb_per_second": spread(contestant.limits).median,
        "share_of_limit": paired_ratio(achieved, contestant.limits).median,
    }


def _row(settings: DecodeSettings, contestant: Contestant, reference: Contestant) -> dict[str, float | int]:
    """Median and spread of the speeds; the ratio to the first sparsity is the median of the repeats' own ratios."""
    tokens = settings.num_tokens * settings.batch_size
    speed = spread([tokens / seconds for seconds in contestant.seconds])
    ratio = paired_ratio(reference.seconds, contestant.seconds)
    return {
        "sparsity": contestant.sparsity,
        "effective_sparsity": contestant.effective_sparsity,
        "tokens_per_second": speed.median,
        "tokens_per_second_min": speed.low,
        "tokens_per_second_max": speed.high,
        "ratio_to_first": ratio.median,
        "ratio_to_first_min": ratio.low,
        "ratio_to_first_max": ratio.high,
        **reading(contestant, settings),
        "batch_size": settings.batch_size,
        "num_tokens": settings.num_tokens,
    }
