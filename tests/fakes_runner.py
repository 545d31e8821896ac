"""FakeRunner: a deterministic, strict runner without tensors, for tests of the engine.

Its KV memory records in every slot who wrote it, for which position, with which token, under which plan, and a hash of
everything before it, because real keys and values depend on that. Each row "attends" to all earlier positions, so a
block written while another row reads it, a position never written, a stale block, or a generated token of another
sequence fails at once. The drawn token is a hash of everything visible (tokens and plans) and of (seed, index): any
difference in chunking, preemption, caching or plan changes the answer. Statistics are sums of numbers that round, so
any other order of addition changes their bits.
"""

import hashlib
import math
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from glass_core.api import StepCost
from glass_core.models.spec import ModelSpec, RopeSpec
from glass_core.runners.base import RowResult, SampleInput, StepBatch, StepResult, StepRow
from glass_core.sparsity.choice import NeuronChooser
from glass_core.sparsity.local_stats import FloatArray, LocalStatistics
from glass_core.sparsity.plan import SparsityPlan

DENSE_FLOPS_PER_TOKEN = 100
EOS = 7
POISON = "this row's logits are not finite"


def fake_spec(*, vocab_size: int = 32, max_position_embeddings: int = 64) -> ModelSpec:
    """Two layers of eight neurons."""
    return ModelSpec(
        model_type="fake",
        vocab_size=vocab_size,
        hidden_size=4,
        intermediate_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        head_dim=4,
        max_position_embeddings=max_position_embeddings,
        norm_eps=1e-5,
        rope=RopeSpec(theta=10000.0),
        sliding_window=(None, None),
    )


@dataclass(frozen=True, slots=True)
class Slot:
    """What the KV memory holds for one position. `context` is a hash of this and all earlier tokens and their plans."""

    sequence_id: str
    position: int
    token_id: int
    plan: str
    is_prompt: bool
    context: bytes


@dataclass(slots=True)
class FakeRunner:
    """Implements `runners.base.Runner`. `failures` are raised by the next steps; `gate` holds steps while cleared.

    A token of the sequences in `poisoned` cannot be drawn: their rows get `POISON` as error.
    """

    num_kv_blocks: int = 16
    block_size: int = 4
    bytes_per_neuron: int = 10
    spec: ModelSpec = field(default_factory=fake_spec)
    fingerprint: str = "fake-fingerprint"
    device: str = "cpu"
    num_parameters: int = 1234
    isa: str | None = "fake_isa"
    refines: bool = True
    choose_neurons: NeuronChooser | None = None
    num_threads: int = 3
    kv_cache_dtype: str = "fake_kv"
    failures: deque[BaseException | None] = field(default_factory=deque)
    poisoned: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[StepBatch] = field(default_factory=list)
    views: dict[str, SparsityPlan] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    closed: bool = False
    _memory: dict[tuple[int, int], Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()

    def view_bytes(self, budgets: Sequence[int]) -> int:
        return sum(budgets) * self.bytes_per_neuron

    def neuron_magnitudes(self) -> FloatArray:
        size = self.spec.num_layers * self.spec.intermediate_size
        return np.arange(size, dtype=np.float32).reshape(self.spec.num_layers, self.spec.intermediate_size)

    def execute(self, batch: StepBatch) -> StepResult:
        assert not self.closed, "execute after close"
        self.entered.set()
        assert self.gate.wait(timeout=30), "the gate was never opened"
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure
        self.batches.append(batch)
        self._check_batch(batch)
        for row in batch.rows:
            self._write(row)
        return StepResult(tuple(self._run(row) for row in batch.rows))

    def release(self, sequence_id: str) -> None:
        self.views.pop(sequence_id, None)
        self.released.append(sequence_id)

    def close(self) -> None:
        self.closed = True

    def _check_batch(self, batch: StepBatch) -> None:
        ids = [row.sequence_id for row in batch.rows]
        assert len(set(ids)) == len(ids), "two rows of one sequence"
        readers = Counter(block for row in batch.rows for block in row.block_table)
        assert all(0 <= block < self.num_kv_blocks for block in readers), "no such block"
        for row in batch.rows:
            assert len(set(row.block_table)) == len(row.block_table), "a block twice in one table"
            written = row.block_table[row.start // self.block_size :]
            assert all(readers[block] == 1 for block in written), "a block is written while another row reads it"
            end = row.start + len(row.token_ids)
            assert row.token_ids, "an empty row"
            in_prompt = row.start < (row.num_prompt_tokens or 0)
            assert in_prompt == (end <= (row.num_prompt_tokens or 0)), "a row spans the end of the prompt"
            assert not (in_prompt and row.plan), "a prompt row under a plan"
            assert end <= self.spec.max_position_embeddings, "beyond the context"
            assert len(row.block_table) * self.block_size >= end, "the block table is too short"
            assert all(0 <= token < self.spec.vocab_size for token in row.token_ids), "no such token"
            assert not (row.plan and row.collect_statistics), "statistics of a sparse row"
            self._check_statistics(row)

    def _check_statistics(self, row: StepRow) -> None:
        prior = row.prior_statistics
        if not row.collect_statistics:
            assert prior is None, "prior statistics of a row that collects none"
            assert not row.snapshot_ends, "snapshots of a row that collects none"
            return
        assert (0 if prior is None else prior.num_tokens) == row.start, "not the sums of the tokens before the row"
        ends = (row.start, *row.snapshot_ends, row.start + len(row.token_ids))
        assert all(earlier < later for earlier, later in pairwise(ends[:-1])), "snapshots out of order"
        assert ends[-2] <= ends[-1], "a snapshot beyond the row"

    def _write(self, row: StepRow) -> None:
        plan = plan_key(row.plan)
        if row.plan is None:
            assert row.sequence_id not in self.views, "a dense row while views are alive: release was forgotten"
        else:
            known = self.views.setdefault(row.sequence_id, row.plan)
            assert known is row.plan, "the plan changed while its views were alive"
        context = self._memory[self._address(row, row.start - 1)].context if row.start else b""
        for position, token_id in enumerate(row.token_ids, row.start):
            is_prompt = position < (row.num_prompt_tokens or 0)
            # the scale is part of what a token computes
            scaled = f"{plan} x {scale_of(row, position)!r}" if is_refined(row) else plan
            context = next_context(context, token_id, scaled)
            slot = Slot(row.sequence_id, position, token_id, scaled, is_prompt, context)
            self._memory[self._address(row, position)] = slot

    def _address(self, row: StepRow, position: int) -> tuple[int, int]:
        return row.block_table[position // self.block_size], position % self.block_size

    def _run(self, row: StepRow) -> RowResult:
        visible = self._attend(row)
        if row.sample is not None and row.sequence_id in self.poisoned:
            return RowResult(fake_cost(row), error=POISON)
        sums = list(self._running_sums(row)) if row.collect_statistics else []
        return RowResult(
            cost=fake_cost(row),
            token_id=None if row.sample is None else self._draw(visible, row.sample),
            statistics=sums[-1] if sums else None,
            snapshots=tuple(sums[end - row.start - 1] for end in row.snapshot_ends),
            ffn_reads=mean_reads(row) if is_refined(row) else None,
        )

    def _attend(self, row: StepRow) -> list[Slot]:
        visible: list[Slot] = []
        for position in range(row.start + len(row.token_ids)):
            slot = self._memory.get(self._address(row, position))
            assert slot is not None, f"position {position} was never written"
            assert slot.position == position, "another position's keys and values"
            is_shareable = slot.is_prompt and slot.plan == "dense"
            assert slot.sequence_id == row.sequence_id or is_shareable, "another one's generated token"
            before = visible[-1].context if visible else b""
            assert slot.context == next_context(before, slot.token_id, slot.plan), "computed after another prefix"
            visible.append(slot)
        return visible

    def _draw(self, visible: list[Slot], sample: SampleInput) -> int:
        tokens = [slot.token_id for slot in visible]
        assert tokens == [*sample.prompt_token_ids, *sample.generated_token_ids], "not the sequence's tokens"
        index = len(sample.generated_token_ids)
        context = repr([(slot.token_id, slot.plan) for slot in visible] + [sample.params.seed, index])
        token = int.from_bytes(hashlib.sha256(context.encode()).digest()[:4]) % self.spec.vocab_size
        while index < sample.params.min_tokens and token in sample.params.stop_token_ids:
            token = (token + 1) % self.spec.vocab_size
        return token

    def _running_sums(self, row: StepRow) -> Iterator[LocalStatistics]:
        """The sums after each token of the row. 1/n rounds, so sums in another order have other bits."""
        total = row.prior_statistics
        if total is None:
            total = LocalStatistics.zeros(self.spec.num_layers, self.spec.intermediate_size)
        neurons = np.arange(self.spec.num_layers * self.spec.intermediate_size).reshape(total.sum_abs.shape)
        for position, token_id in enumerate(row.token_ids, row.start):
            values = (1 / (2 + (neurons * 7 + token_id * 5 + position) % 23)).astype(np.float32)
            total = total + LocalStatistics(values, values * values, 1)
            for array in (total.sum_abs, total.sum_squares):
                array.flags.writeable = False
            yield total


def next_context(context: bytes, token_id: int, plan: str) -> bytes:
    return hashlib.sha256(context + repr((token_id, plan)).encode()).digest()


def is_refined(row: StepRow) -> bool:
    return row.plan is not None and row.plan.refinement is not None


def scale_of(row: StepRow, position: int) -> float:
    return row.refine_scales[position - row.start] if row.refine_scales else 1.0


def mean_reads(row: StepRow) -> float:
    """Each token's reads fall with its scale and depend on nothing else but the token."""
    reads = [
        min(max(0.6 + 0.03 * (token_id % 7 - 3) - 0.2 * math.log(scale_of(row, position)), 1 / 3), 1.0)
        for position, token_id in enumerate(row.token_ids, row.start)
    ]
    return sum(reads) / len(reads)


def fake_cost(row: StepRow) -> StepCost:
    """100 FLOPs a token, half of them in the FFN; a plan saves its sparsity's share of these."""
    dense = DENSE_FLOPS_PER_TOKEN * len(row.token_ids)
    saved = 0 if row.plan is None else round(row.plan.sparsity * dense / 2)
    return StepCost(
        dense, dense - saved, dense // 2, dense // 2 - saved, dense, dense - saved, dense // 2 - saved, dense - saved
    )


def plan_key(plan: SparsityPlan | None) -> str:
    """A plan by its content: equal plans of two runs give equal answers."""
    if plan is None:
        return "dense"
    scores = () if plan.refinement is None else (hashlib.sha256(plan.refinement.weights.down.tobytes()).hexdigest(),)
    return ",".join((*(indices.tobytes().hex() for indices in plan.neurons), *scores))
