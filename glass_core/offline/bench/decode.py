"""Decode speed at several sparsities, measured so that their ratios are fair.

All sparsities' sequences are prefilled once; then each repeat times every sparsity in turn, so a slow minute of the
machine hits all of them alike. A timed run decodes the same tokens every time: it restarts from the end of the prompt.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from glass_core.api import SamplingParams, SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.traffic import step_traffic
from glass_core.offline.generation import OfflineSequence, decode_step, lay_out, prefill
from glass_core.offline.progress import Progress
from glass_core.runners.base import Runner
from glass_core.sparsity.selection import PlanSelector


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
    bytes_per_weight: int = 4

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
    """The batch of one sparsity and its timings in seconds, one per repeat."""

    sparsity: float
    sequences: list[OfflineSequence]
    seconds: list[float] = field(default_factory=list)

    @property
    def effective_sparsity(self) -> float:
        plan = self.sequences[0].plan
        return 0.0 if plan is None else plan.sparsity

    def budgets(self) -> list[tuple[int, ...] | None]:
        return [None if sequence.plan is None else sequence.plan.budgets for sequence in self.sequences]


def measure_decode(
    runner: Runner,
    selector: PlanSelector,
    settings: DecodeSettings,
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> list[dict[str, float | int]]:
    """One result row per sparsity. `prompts` has batch_size prompts of prompt_tokens tokens."""
    contestants = _prepare(runner, selector, settings, prompts)
    for contestant in contestants:  # untimed: builds views, touches pages
        _decode(runner, contestant.sequences, 2)
    with progress.task("decoding", settings.repeats * len(contestants)) as advance:
        for _ in range(settings.repeats):
            for contestant in contestants:
                contestant.seconds.append(_decode(runner, contestant.sequences, settings.num_tokens))
                advance()
    for contestant in contestants:
        for sequence in contestant.sequences:
            runner.release(sequence.sequence_id)
    return [_row(runner, settings, contestant, contestants[0]) for contestant in contestants]


def random_prompts(settings: DecodeSettings, vocab_size: int) -> list[list[int]]:
    """Seeded token ids: a benchmark of speed needs no meaning."""
    import numpy as np  # noqa: PLC0415  only here

    generator = np.random.default_rng(settings.seed)
    drawn: list[list[int]] = generator.integers(vocab_size, size=(settings.batch_size, settings.prompt_tokens)).tolist()
    return drawn


def _prepare(
    runner: Runner, selector: PlanSelector, settings: DecodeSettings, prompts: Sequence[Sequence[int]]
) -> list[Contestant]:
    """Prefill every contestant's sequences and select their plans."""
    sampling = SamplingParams(max_tokens=settings.num_tokens + 1, seed=settings.seed, temperature=0.0, ignore_eos=True)
    count = len(settings.sparsities)
    sequences = lay_out([*prompts] * count, [sampling] * (len(prompts) * count))
    prefill(runner, sequences)
    contestants = []
    for index, sparsity in enumerate(settings.sparsities):
        own = sequences[index * len(prompts) : (index + 1) * len(prompts)]
        params = SparsityParams(sparsity=sparsity, method=settings.method, seed=settings.seed)
        for sequence in own:
            assert sequence.statistics is not None
            sequence.plan = selector.select(params, sequence.statistics)
        contestants.append(Contestant(sparsity, own))
    return contestants


def _decode(runner: Runner, sequences: Sequence[OfflineSequence], num_tokens: int) -> float:
    """Seconds for num_tokens decode steps from the end of the prompt."""
    for sequence in sequences:
        del sequence.generated[1:]
    start = time.perf_counter()
    for _ in range(num_tokens):
        decode_step(runner, sequences)
    return time.perf_counter() - start


def _row(
    runner: Runner, settings: DecodeSettings, contestant: Contestant, reference: Contestant
) -> dict[str, float | int]:
    """Median and spread of the speeds; the ratio to the first sparsity is the median of the repeats' own ratios."""
    tokens = settings.num_tokens * settings.batch_size
    speeds = [tokens / seconds for seconds in contestant.seconds]
    traffic = step_traffic(
        runner.spec,
        contestant.budgets(),
        num_keys=settings.prompt_tokens + (settings.num_tokens + 1) / 2,
        bytes_per_weight=settings.bytes_per_weight,
    )
    median = statistics.median(speeds)
    bytes_per_token = traffic.total_bytes / settings.batch_size
    ratios = [base / own for base, own in zip(reference.seconds, contestant.seconds, strict=True)]
    return {
        "sparsity": contestant.sparsity,
        "effective_sparsity": contestant.effective_sparsity,
        "tokens_per_second": median,
        "tokens_per_second_min": min(speeds),
        "tokens_per_second_max": max(speeds),
        "ratio_to_first": statistics.median(ratios),
        "bytes_per_token": round(bytes_per_token),
        "ffn_bytes_per_token": round(traffic.ffn_bytes / settings.batch_size),
        "gb_per_second": median * bytes_per_token / 1e9,
        "batch_size": settings.batch_size,
        "num_tokens": settings.num_tokens,
    }
