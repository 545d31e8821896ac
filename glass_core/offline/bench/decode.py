"""Decode speed at several sparsities, measured so that their ratios are fair.

All sparsities' sequences are prefilled once; then each repeat times every sparsity in turn, so a slow minute of the
machine hits all of them alike. A timed run decodes the same tokens every time: it restarts from the end of the prompt.
After each, as many bytes as one of its steps reads are read by nothing but a loop: the limit it is held against.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from glass_core.api import SamplingParams, SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.bandwidth import ReadBandwidth
from glass_core.offline.bench.session import Session
from glass_core.offline.bench.spread import paired_ratio, spread
from glass_core.offline.bench.traffic import StepTraffic
from glass_core.offline.decode_timing import time_decode
from glass_core.offline.generation import OfflineSequence, lay_out, prefill
from glass_core.offline.progress import Progress
from glass_core.runners.base import Runner


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What to measure. Tokens per second are of the whole batch. `refine`: also refined answers of every sparsity, in
    turn with the static ones and with dense ones, which come first."""

    sparsities: tuple[float, ...]
    method: str = "griffin"
    num_tokens: int = 64
    prompt_tokens: int = 32
    batch_size: int = 1
    repeats: int = 5
    seed: int = 0
    refine: bool = False

    def __post_init__(self) -> None:
        for name in ("num_tokens", "prompt_tokens", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(set(self.sparsities)) != len(self.sparsities):
            raise ConfigurationError(f"sparsities must differ, got {self.sparsities}")

    @property
    def subjects(self) -> tuple[tuple[float, bool], ...]:
        """(sparsity, refined?) of every contestant; the first one is what the others' ratios are to."""
        if not self.refine:
            return tuple((sparsity, False) for sparsity in self.sparsities)
        sparse = [sparsity for sparsity in self.sparsities if sparsity > 0]
        return ((0.0, False), *((sparsity, refined) for sparsity in sparse for refined in (False, True)))

    @property
    def max_sequence_tokens(self) -> int:
        """Positions one sequence uses: prompt, its first token, the decoded ones."""
        return self.prompt_tokens + self.num_tokens + 1


@dataclass(slots=True)
class Contestant:
    """The batch of one subject; per repeat its seconds and the machine's read bandwidth in GB/s right after, at the
    size of its steps.

    `needed` is what its plans take of a step, `traffic` what a step really reads: more, where walking a layer whole is
    faster. Both, and `ffn_reads` of refined answers, are known once it has run, and the same every time, as are the
    tokens. A refined batch needs what it reads: nobody counts the union of its cascades otherwise.
    """

    sparsity: float
    refine: bool
    sequences: list[OfflineSequence]
    traffic: StepTraffic
    needed: StepTraffic
    ffn_reads: float | None = None
    seconds: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    @property
    def effective_sparsity(self) -> float:
        if self.ffn_reads is not None:
            return 1.0 - self.ffn_reads
        plan = self.sequences[0].plan
        return 0.0 if plan is None else plan.sparsity

    def decode(self, session: Session, num_tokens: int) -> float:
        """Seconds for num_tokens decode steps from the end of the prompt."""
        decoded = time_decode(session.runner, self.sequences, num_tokens)
        if self.refine or session.image is not None:
            self.traffic = replace(self.traffic, ffn_bytes=round(decoded.executed_ffn_bytes))
        if self.refine:
            self.ffn_reads = decoded.ffn_reads
            least = decoded.planned_ffn_bytes if len(self.sequences) == 1 else decoded.executed_ffn_bytes
            self.needed = replace(self.needed, ffn_bytes=round(least))
        return decoded.seconds


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
) -> list[dict[str, Any]]:
    """One result row per subject. `prompts` has batch_size prompts of prompt_tokens tokens."""
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
    """Prefill every subject's sequences, select their plans, and decode a little, untimed: builds views, touches
    pages.

    Raises ConfigurationError when the runner has no room for them, MissingStatisticsError or InvalidRequestError for
    plans that cannot be made.
    """
    sampling = SamplingParams(max_tokens=settings.num_tokens + 1, seed=settings.seed, temperature=0.0, ignore_eos=True)
    count = len(settings.subjects)
    sequences = lay_out([*prompts] * count, [sampling] * (len(prompts) * count))
    prefill(session.runner, sequences)
    contestants = []
    for index, (sparsity, refine) in enumerate(settings.subjects):
        own = sequences[index * len(prompts) : (index + 1) * len(prompts)]
        _select(session, own, params_of(session, settings, sparsity, refine=refine))
        num_keys = settings.prompt_tokens + (settings.num_tokens + 1) / 2
        traffic = session.traffic([sequence.plan for sequence in own], num_keys=num_keys)
        contestants.append(Contestant(sparsity, refine, own, traffic, traffic))
        contestants[-1].decode(session, min(2, settings.num_tokens))
    return contestants


def params_of(session: Session, settings: DecodeSettings, sparsity: float, *, refine: bool) -> SparsityParams:
    """What a subject's requests ask for; refined ones by the profile that the server takes."""
    params = SparsityParams(sparsity=sparsity, method=settings.method, seed=settings.seed)
    return replace(params, refine=True, profile=session.selector.default_profile) if refine else params


def _select(session: Session, sequences: Sequence[OfflineSequence], params: SparsityParams) -> None:
    for sequence in sequences:
        assert sequence.statistics is not None
        sequence.plan = session.selector.select(params, sequence.statistics)


def release(runner: Runner, contestants: Sequence[Contestant]) -> None:
    """Drop the views of all sequences."""
    for contestant in contestants:
        for sequence in contestant.sequences:
            runner.release(sequence.sequence_id)


def time_contestant(session: Session, contestant: Contestant, num_tokens: int, bandwidth: ReadBandwidth) -> None:
    """One more repeat: decode, then read as many bytes."""
    contestant.seconds.append(contestant.decode(session, num_tokens))
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


def _row(settings: DecodeSettings, contestant: Contestant, reference: Contestant) -> dict[str, Any]:
    """Median and spread of the speeds; the ratio to the first subject is the median of the repeats' own ratios, and
    `ratio_of_bytes` what the bytes that the plans take would allow."""
    tokens = settings.num_tokens * settings.batch_size
    speed = spread([tokens / seconds for seconds in contestant.seconds])
    ratio = paired_ratio(reference.seconds, contestant.seconds)
    return {
        "sparsity": contestant.sparsity,
        "refine": contestant.refine,
        "effective_sparsity": contestant.effective_sparsity,
        "tokens_per_second": speed.median,
        "tokens_per_second_min": speed.low,
        "tokens_per_second_max": speed.high,
        "ratio_to_first": ratio.median,
        "ratio_to_first_min": ratio.low,
        "ratio_to_first_max": ratio.high,
        "ratio_of_bytes": reference.needed.total_bytes / contestant.needed.total_bytes,
        **reading(contestant, settings),
        "batch_size": settings.batch_size,
        "num_tokens": settings.num_tokens,
    }
