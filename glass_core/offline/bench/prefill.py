"""Prompt processing: tokens per second at several lengths, and what choosing neurons adds to the first token.

Prompts run as the engine runs them: densely, in chunks of at most `chunk_tokens`, with statistics collected, and the
first token drawn from the last chunk. Lengths take turns within every repeat.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from glass_core.api import SamplingParams, SparsityParams
from glass_core.config import SchedulerConfig
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.session import Session
from glass_core.offline.bench.spread import spread
from glass_core.offline.generation import blocks_for
from glass_core.offline.progress import Progress
from glass_core.runners.base import RowResult, SampleInput, StepBatch, StepRow
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan

_SEQUENCE = "prefill"
_ANSWER_TOKENS = 3  # the first token and two decode steps, of which the first builds the views


@dataclass(frozen=True, slots=True)
class PrefillSettings:
    """What to measure. `sparsity` and `method` are those of the selection that is timed."""

    prompt_tokens: tuple[int, ...] = (32, 128, 512)
    chunk_tokens: int = SchedulerConfig().max_step_tokens
    sparsity: float = 0.5
    method: str = "griffin"
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.prompt_tokens or min(self.prompt_tokens) < 1:
            raise ConfigurationError(f"prompt_tokens must be at least 1, got {self.prompt_tokens}")
        if not self.sparsity > 0:
            raise ConfigurationError(f"sparsity must be positive: a dense request selects nothing, got {self.sparsity}")

    @property
    def max_sequence_tokens(self) -> int:
        """Positions the longest sequence uses."""
        return max(self.prompt_tokens) + _ANSWER_TOKENS


@dataclass(slots=True)
class PromptTimings:
    """Seconds of every repeat for one length. `views` is how much longer the first decode step under a plan took than
    the next one; `effective_sparsity` is that of the plan."""

    prompt: tuple[int, ...]
    prefill: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)
    views: list[float] = field(default_factory=list)
    effective_sparsity: float = 0.0


def run_prefill(session: Session, settings: PrefillSettings, progress: Progress, command: str) -> dict[str, Any]:
    """The result file's content: `conditions` and `rows`."""
    rows = measure_prefill(session, settings, progress)
    return {"conditions": session.conditions(asdict(settings), command), "rows": rows}


def measure_prefill(session: Session, settings: PrefillSettings, progress: Progress) -> list[dict[str, Any]]:
    """One row per length."""
    timings = prompt_timings(session, settings)
    for timing in timings:  # untimed: touches pages
        run_prompt(session, settings, timing.prompt)
    with progress.task("prefill", settings.repeats * len(timings)) as advance:
        for _ in range(settings.repeats):
            for timing in timings:
                _time_prompt(session, settings, timing)
                advance()
    return [{**_row(timing), "sparsity": settings.sparsity} for timing in timings]


def prompt_timings(session: Session, settings: PrefillSettings) -> list[PromptTimings]:
    """Seeded random prompts of the lengths asked for."""
    generator = np.random.default_rng(settings.seed)
    vocab_size = session.spec.vocab_size
    return [
        PromptTimings(tuple(generator.integers(vocab_size, size=length).tolist())) for length in settings.prompt_tokens
    ]


def run_prompt(
    session: Session, settings: PrefillSettings, prompt: tuple[int, ...], *, first_block: int = 0
) -> RowResult:
    """Prefill one prompt in chunks, into KV blocks from `first_block` on; the last chunk's result, with the statistics
    of all of them."""
    statistics: LocalStatistics | None = None
    for start in range(0, len(prompt), settings.chunk_tokens):
        tokens = prompt[start : start + settings.chunk_tokens]
        is_last = start + len(tokens) == len(prompt)
        drawn = () if is_last else None
        row = _row_of(prompt, tokens, start=start, sampled=drawn, prior=statistics, first_block=first_block)
        (result,) = session.runner.execute(StepBatch((row,))).rows
        statistics = result.statistics
    return result


def _time_prompt(session: Session, settings: PrefillSettings, timing: PromptTimings) -> None:
    start = time.perf_counter()
    result = run_prompt(session, settings, timing.prompt)
    prefilled = time.perf_counter()
    assert result.statistics is not None and result.token_id is not None
    params = SparsityParams(sparsity=settings.sparsity, method=settings.method, seed=settings.seed)
    plan = session.selector.select(params, result.statistics)
    selected = time.perf_counter()
    timing.prefill.append(prefilled - start)
    timing.selection.append(selected - prefilled)
    timing.effective_sparsity = 0.0 if plan is None else plan.sparsity
    timing.views.append(_view_seconds(session, timing.prompt, result.token_id, plan))


def _view_seconds(session: Session, prompt: tuple[int, ...], token: int, plan: SparsityPlan | None) -> float:
    """Not less than 0: where views cost nothing, the difference of two steps is noise."""
    seconds, tokens = [], [token]
    for _ in range(_ANSWER_TOKENS - 1):
        start = len(prompt) + len(tokens) - 1
        row = _row_of(prompt, (tokens[-1],), start=start, sampled=tokens, plan=plan)
        begin = time.perf_counter()
        (result,) = session.runner.execute(StepBatch((row,))).rows
        seconds.append(time.perf_counter() - begin)
        assert result.token_id is not None
        tokens.append(result.token_id)
    session.runner.release(_SEQUENCE)
    return max(0.0, seconds[0] - seconds[1])


def _row_of(
    prompt: tuple[int, ...],
    tokens: tuple[int, ...],
    *,
    start: int,
    sampled: Sequence[int] | None,
    prior: LocalStatistics | None = None,
    plan: SparsityPlan | None = None,
    first_block: int = 0,
) -> StepRow:
    """`sampled` None = draw no token; `plan` None = a prefill chunk, which collects."""
    sampling = SamplingParams(max_tokens=_ANSWER_TOKENS, seed=0, temperature=0.0, ignore_eos=True)
    return StepRow(
        sequence_id=_SEQUENCE,
        token_ids=tokens,
        start=start,
        block_table=tuple(range(first_block, first_block + blocks_for(len(prompt) + _ANSWER_TOKENS))),
        plan=plan,
        collect_statistics=plan is None,
        prior_statistics=prior,
        sample=None if sampled is None else SampleInput(sampling, prompt, sampled),
        num_prompt_tokens=len(prompt),
    )


def _row(timing: PromptTimings) -> dict[str, Any]:
    """Medians over the repeats. The share is that of selection and views in the time to the first token plus views."""
    length = len(timing.prompt)
    speed = spread([length / seconds for seconds in timing.prefill])
    prefill, selection, views = (spread(values) for values in (timing.prefill, timing.selection, timing.views))
    extra = selection.median + views.median
    return {
        "prompt_tokens": length,
        "tokens_per_second": speed.median,
        "tokens_per_second_min": speed.low,
        "tokens_per_second_max": speed.high,
        "seconds": prefill.median,
        "selection_seconds": selection.median,
        "view_seconds": views.median,
        "effective_sparsity": timing.effective_sparsity,
        "selection_share": extra / (prefill.median + extra),
    }
