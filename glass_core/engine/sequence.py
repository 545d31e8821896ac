"""Sequence: the engine's state of one request.

    WAITING ──admit──▶ PREFILLING ──all but the newest token in the cache──▶ RUNNING ──▶ FINISHED
       ▲                   │                                                   │
       └─────────────── preempt (keeps plan and generated tokens) ◀────────────┘

The tokens are the prompt, run densely, then the generated ones, run under the plan. `num_computed` counts the positions
whose keys and values are in the cache, so recomputation after preemption is nothing but `num_computed = 0`, and a
prefix found in the cache nothing but a larger `num_computed` to begin with.
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
from glass_core.engine.refine_control import ReadsController
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

    `is_sparse` says that a plan will be selected at the end of the prompt, `collects` that this needs the prompt's
    statistics, `plan_frozen` that it has happened. `reads` keeps the scales of a refined plan's tokens.
    `block_keys` name the prompt's whole blocks in the prefix cache (none = it is not cached); `num_cached` counts the
    tokens found there at the first admission; at `snapshot_ends` the cache wants the sums of the statistics.
    """

    request: GenerationRequest
    is_sparse: bool = False
    collects: bool = False
    view_bytes: int = 0
    block_keys: tuple[bytes, ...] = ()
    status: SequenceStatus = SequenceStatus.WAITING
    generated: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int | None = None
    block_table: list[int] = field(default_factory=list)
    snapshot_ends: tuple[int, ...] = ()
    statistics: LocalStatistics | None = None
    plan: SparsityPlan | None = None
    plan_frozen: bool = False
    reads: ReadsController | None = None
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
        """Tokens that one row may run next. A row never spans the boundary between dense prompt and plan, nor that
        between refined tokens that run again and the new one, whose reads must be known by themselves."""
        num_repeated = 0 if self.reads is None else self.reads.num_tokens
        bounds = (self.num_prompt, self.num_prompt + num_repeated, self.num_tokens)
        return next(end for end in bounds if end > self.num_computed) - self.num_computed

    @property
    def prompt_done(self) -> bool:
        return self.num_computed >= self.num_prompt

    @property
    def needs_statistics(self) -> bool:
        return self.collects and not self.plan_frozen

    def reusable_keys(self, block_size: int) -> tuple[bytes, ...]:
        """Keys of the blocks it could take from the prefix cache: never its newest token, whose logits are needed."""
        return self.block_keys[: min(self.num_prompt, self.num_tokens - 1) // block_size]

    def coming_keys(self, block_size: int, reader: "Sequence") -> frozenset[bytes]:
        """Keys of what the rest of its prompt will add to the prefix cache and `reader` can use: blocks, or, if that
        needs statistics, snapshots."""
        if not reader.needs_statistics:
            return frozenset(self.block_keys[self.num_computed // block_size :])
        ends = (end for end in self.snapshot_ends if end > self.num_computed)
        return frozenset(self.block_keys[end // block_size - 1] for end in ends)

    def admit(
        self,
        blocks: list[int],
        *,
        num_cached: int = 0,
        statistics: LocalStatistics | None = None,
        snapshot_ends: tuple[int, ...] = (),
    ) -> None:
        """Give it memory, of which the first `num_cached` positions are already computed, with their `statistics`."""
        self.block_table = blocks
        self.num_computed = num_cached
        self.statistics = statistics
        self.snapshot_ends = snapshot_ends
        if self.num_cached is None:
            self.num_cached = num_cached
        self.status = SequenceStatus.PREFILLING

    def preempt(self) -> None:
        """Forget the cache. A frozen plan stays; sums of an unfinished prompt start over with it."""
        self.status = SequenceStatus.WAITING
        self.num_computed = 0
        self.statistics = None

    def freeze(self, plan: SparsityPlan | None) -> None:
        """Take the plan, once and for all."""
        self.plan = plan
        self.statistics = None
        if plan is not None and plan.refinement is not None:
            self.reads = ReadsController(plan.refinement.reads)

    def row(self, num_tokens: int, block_size: int) -> StepRow:
        """The next `num_tokens` tokens as a runner's row."""
        start, end = self.num_computed, self.num_computed + num_tokens
        in_prompt = start < self.num_prompt
        collects = in_prompt and self.needs_statistics
        snapshot_ends = tuple(at for at in self.snapshot_ends if start < at <= end) if collects else ()
        return StepRow(
            sequence_id=self.id,
            token_ids=self._tokens(start, end),
            start=start,
            block_table=tuple(self.block_table[: -(-end // block_size)]),
            plan=None if in_prompt else self.plan,
            collect_statistics=collects,
            sample=self._sample_input() if end == self.num_tokens else None,
            num_prompt_tokens=self.num_prompt,
            prior_statistics=self.statistics if collects else None,
            snapshot_ends=snapshot_ends,
            refine_scales=() if in_prompt or self.reads is None else self.reads.scales(*self._decoded(start, end)),
        )

    def _decoded(self, start: int, end: int) -> tuple[int, int]:
        """Positions as numbers of generated tokens."""
        return start - self.num_prompt, end - self.num_prompt

    def _tokens(self, start: int, end: int) -> tuple[int, ...]:
        if start < self.num_prompt:
            return self.request.prompt_token_ids[start:end]
        return tuple(self.generated[start - self.num_prompt : end - self.num_prompt])

    def _sample_input(self) -> SampleInput:
        # The live list, not a copy a step: the engine appends only after the runner has returned.
        return SampleInput(self.request.sampling, self.request.prompt_token_ids, self.generated)

    def advance(self, num_tokens: int, result: RowResult) -> None:
        """Take over what a row brought: positions in the cache, cost, statistics, token."""
        if self.reads is not None and result.ffn_reads is not None:
            span = self._decoded(self.num_computed, self.num_computed + num_tokens)
            self.reads.observe(*span, result.ffn_reads)
        self.num_computed += num_tokens
        self.cost += result.cost
        if result.statistics is not None:
            self.statistics = result.statistics
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
        return Finish(
            reason,
            self.num_prompt,
            len(self.generated),
            timings,
            self._report(),
            num_cached_tokens=self.num_cached or 0,
        )

    def _report(self) -> SparsityReport:
        """From the plan really used, not from the request; no plan is dense."""
        asked, plan = self.request.sparsity, self.plan
        return SparsityReport(
            method=DENSE_METHOD if plan is None else plan.method,
            sparsity_requested=asked.sparsity,
            sparsity=self._effective_sparsity(),
            lambda_=None if plan is None else plan.lambda_,
            profile=asked.profile,
            cost=self.cost,
            selection_seconds=self.selection_seconds,
            global_overlap=None if plan is None else plan.global_overlap,
            refine=self.reads is not None,
            max_kl=asked.max_kl,
            expected_kl=asked.expected_kl,
        )

    def _effective_sparsity(self) -> float:
        """What was really left out: of a refined answer, what its tokens did not read."""
        if self.plan is None:
            return 0.0
        reads = None if self.reads is None else self.reads.mean_reads
        return self.plan.sparsity if reads is None else 1.0 - reads
