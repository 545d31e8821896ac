"""Sequence: the engine's state of one request.

    WAITING ──admit──▶ PREFILLING ──all but the newest token in the cache──▶ RUNNING ──▶ FINISHED
       ▲                   │                                                   │
       └─────────────── preempt (keeps plan and generated tokens) ◀────────────┘

The tokens are the prompt, run densely, then the generated ones, run under the plan. `num_computed` counts the positions
whose keys and values are in the cache, so recomputation after preemption is nothing but `num_computed = 0`.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from glass_core.api import (
    DENSE_METHOD,
    Finish,
    FinishReason,
    GenerationRequest,
    RequestTimings,
    SparsityReport,
    StepCost,
)
from glass_core.runners.base import RowResult, SampleInput, StepRow
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan


class SequenceStatus(Enum):
    """WAITING holds no memory; PREFILLING and RUNNING hold KV blocks; FINISHED is final."""

    WAITING = auto()
    PREFILLING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable state of one request. `view_bytes` is what its plan's views will hold, known before the plan itself.

    `is_sparse` says that a plan will be selected at the end of the prompt; `plan_frozen` that this has happened.
    """

    request: GenerationRequest
    is_sparse: bool = False
    view_bytes: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    generated: list[int] = field(default_factory=list)
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    statistics: LocalStatistics | None = None
    plan: SparsityPlan | None = None
    plan_frozen: bool = False
    selection_seconds: float = 0.0
    cost: StepCost = field(default_factory=StepCost)
    first_scheduled: float | None = None
    prefill_finished: float | None = None
    first_token: float | None = None

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + len(self.generated)

    @property
    def method(self) -> str:
        """What its cost is booked under. Known from the start, so that the prompt is booked with the rest."""
        return self.request.sparsity.method if self.is_sparse else DENSE_METHOD

    @property
    def num_ready(self) -> int:
        """Tokens that one row may run next. A row never spans the boundary between dense prompt and plan."""
        end = self.num_prompt if self.num_computed < self.num_prompt else self.num_tokens
        return end - self.num_computed

    @property
    def prompt_done(self) -> bool:
        return self.num_computed >= self.num_prompt

    def admit(self, blocks: list[int]) -> None:
        self.block_table = blocks
        self.status = SequenceStatus.PREFILLING

    def preempt(self) -> None:
        """Forget the cache. A frozen plan stays; sums of an unfinished prompt start over with it."""
        self.status = SequenceStatus.WAITING
        self.num_computed = 0
        if not self.plan_frozen:
            self.statistics = None

    def row(self, num_tokens: int, block_size: int) -> StepRow:
        """The next `num_tokens` tokens as a runner's row."""
        start, end = self.num_computed, self.num_computed + num_tokens
        in_prompt = start < self.num_prompt
        return StepRow(
            sequence_id=self.id,
            token_ids=self._tokens(start, end),
            start=start,
            block_table=tuple(self.block_table[: -(-end // block_size)]),
            plan=None if in_prompt else self.plan,
            collect_statistics=in_prompt and self.is_sparse and not self.plan_frozen,
            sample=self._sample_input() if end == self.num_tokens else None,
            num_prompt_tokens=self.num_prompt,
        )

    def _tokens(self, start: int, end: int) -> tuple[int, ...]:
        if start < self.num_prompt:
            return self.request.prompt_token_ids[start:end]
        return tuple(self.generated[start - self.num_prompt : end - self.num_prompt])

    def _sample_input(self) -> SampleInput:
        # The live list, not a copy a step: the engine appends only after the runner has returned.
        return SampleInput(self.request.sampling, self.request.prompt_token_ids, self.generated)

    def advance(self, num_tokens: int, result: RowResult) -> None:
        """Take over what a row brought: positions in the cache, cost, statistics, token."""
        self.num_computed += num_tokens
        self.cost += result.cost
        if result.statistics is not None:
            self.statistics = result.statistics if self.statistics is None else self.statistics + result.statistics
        if result.token_id is not None:
            self.generated.append(result.token_id)
        if self.prompt_done and self.num_computed == self.num_tokens - 1:
            self.status = SequenceStatus.RUNNING

    def stop_reason(self) -> FinishReason | None:
        """Why the newest token ends the sequence, if it does. `Limits` keeps `max_tokens` within the context."""
        sampling = self.request.sampling
        if not sampling.ignore_eos and self.generated[-1] in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.generated) >= sampling.max_tokens else None

    def end(self, reason: FinishReason, now: float) -> Finish:
        """Close the books; `now` in monotonic seconds."""
        self.status = SequenceStatus.FINISHED
        timings = RequestTimings(
            arrival=self.request.arrival_time,
            finished=now,
            first_scheduled=self.first_scheduled,
            prefill_finished=self.prefill_finished,
            first_token=self.first_token,
        )
        return Finish(reason, self.num_prompt, len(self.generated), timings, self._report())

    def _report(self) -> SparsityReport:
        """From the plan really used, not from the request; no plan is dense."""
        asked, plan = self.request.sparsity, self.plan
        return SparsityReport(
            method=DENSE_METHOD if plan is None else plan.method,
            sparsity_requested=asked.sparsity,
            sparsity=0.0 if plan is None else plan.sparsity,
            lambda_=None if plan is None else plan.lambda_,
            profile=asked.profile,
            cost=self.cost,
            selection_seconds=self.selection_seconds,
            global_overlap=None if plan is None else plan.global_overlap,
        )
