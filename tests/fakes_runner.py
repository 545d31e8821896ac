"""FakeRunner: a deterministic, strict runner without tensors, for tests of the engine.

Its KV memory records in every slot who wrote it, for which position, with which token and under which plan. Each row
"attends" to all earlier positions, so a block shared by two sequences, a position never written, or a stale block fails
at once. The drawn token is a hash of everything visible (tokens and plans) and of (seed, index): any difference in
chunking, preemption or plan changes the answer.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from glass_core.api import StepCost
from glass_core.models.spec import ModelSpec, RopeSpec
from glass_core.runners.base import RowResult, SampleInput, StepBatch, StepResult, StepRow
from glass_core.sparsity.local_stats import FloatArray, LocalStatistics
from glass_core.sparsity.plan import SparsityPlan

DENSE_FLOPS_PER_TOKEN = 100
EOS = 7


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
    """What the KV memory holds for one position."""

    sequence_id: str
    position: int
    token_id: int
    plan: str


@dataclass(slots=True)
class FakeRunner:
    """Implements `runners.base.Runner`. `failures` are raised by the next steps; `gate` holds steps while cleared."""

    num_kv_blocks: int = 16
    block_size: int = 4
    bytes_per_neuron: int = 10
    spec: ModelSpec = field(default_factory=fake_spec)
    fingerprint: str = "fake-fingerprint"
    device: str = "cpu"
    num_parameters: int = 1234
    failures: deque[BaseException | None] = field(default_factory=deque)
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
        blocks = [block for row in batch.rows for block in row.block_table]
        assert len(set(blocks)) == len(blocks), "two sequences share a block"
        assert all(0 <= block < self.num_kv_blocks for block in blocks), "no such block"
        for row in batch.rows:
            end = row.start + len(row.token_ids)
            assert row.token_ids, "an empty row"
            in_prompt = row.start < (row.num_prompt_tokens or 0)
            assert in_prompt == (end <= (row.num_prompt_tokens or 0)), "a row spans the end of the prompt"
            assert not (in_prompt and row.plan), "a prompt row under a plan"
            assert end <= self.spec.max_position_embeddings, "beyond the context"
            assert len(row.block_table) * self.block_size >= end, "the block table is too short"
            assert all(0 <= token < self.spec.vocab_size for token in row.token_ids), "no such token"
            assert not (row.plan and row.collect_statistics), "statistics of a sparse row"

    def _write(self, row: StepRow) -> None:
        plan = plan_key(row.plan)
        if row.plan is None:
            assert row.sequence_id not in self.views, "a dense row while views are alive: release was forgotten"
        else:
            known = self.views.setdefault(row.sequence_id, row.plan)
            assert known is row.plan, "the plan changed while its views were alive"
        for offset, token_id in enumerate(row.token_ids):
            position = row.start + offset
            self._memory[self._address(row, position)] = Slot(row.sequence_id, position, token_id, plan)

    def _address(self, row: StepRow, position: int) -> tuple[int, int]:
        return row.block_table[position // self.block_size], position % self.block_size

    def _run(self, row: StepRow) -> RowResult:
        visible = self._attend(row)
        return RowResult(
            cost=fake_cost(row),
            token_id=None if row.sample is None else self._draw(visible, row.sample),
            statistics=self._statistics(row) if row.collect_statistics else None,
        )

    def _attend(self, row: StepRow) -> list[Slot]:
        visible = []
        for position in range(row.start + len(row.token_ids)):
            slot = self._memory.get(self._address(row, position))
            assert slot is not None, f"position {position} was never written"
            assert (slot.sequence_id, slot.position) == (row.sequence_id, position), "another one's keys and values"
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

    def _statistics(self, row: StepRow) -> LocalStatistics:
        # Small integers: sums are exact, so a chunked prompt selects bit for bit what a whole one does.
        sums = np.zeros((self.spec.num_layers, self.spec.intermediate_size), dtype=np.float32)
        for offset, token_id in enumerate(row.token_ids):
            for layer in range(self.spec.num_layers):
                sums[layer, (token_id * 5 + row.start + offset + layer) % self.spec.intermediate_size] += 1.0
        return LocalStatistics(sums, sums.copy(), len(row.token_ids))


def fake_cost(row: StepRow) -> StepCost:
    """100 FLOPs a token, half of them in the FFN; a plan saves its sparsity's share of these."""
    dense = DENSE_FLOPS_PER_TOKEN * len(row.token_ids)
    saved = 0 if row.plan is None else round(row.plan.sparsity * dense / 2)
    return StepCost(dense, dense - saved, dense // 2, dense // 2 - saved, dense, dense - saved)


def plan_key(plan: SparsityPlan | None) -> str:
    """A plan by its content: equal plans of two runs give equal answers."""
    if plan is None:
        return "dense"
    return ",".join(indices.tobytes().hex() for indices in plan.neurons)
