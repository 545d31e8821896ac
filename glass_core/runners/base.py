"""The Runner protocol: what the engine hands to a compute runner and what it gets back.

Phase is data, not shape: a row says by its `plan` whether its tokens run densely and by `collect_statistics` whether
they count for selection. A one-token prompt, the one-token tail of a chunked prefill, a recomputed answer after
preemption (many tokens, under a plan) and a decode step are all just rows.

Ownership: the engine owns sequences, plans and block tables; the runner owns weights, the KV pool and the weight views
it builds for a sequence's plan. The views live from the first row that carries the plan until `release`.

Blocks of a prompt may be shared: several rows of a step, and rows of later steps, read the keys and values of the same
blocks below their `start`. A row writes only positions >= `start`, whose blocks no other sequence holds.

Statistics are a fold over tokens. A row that collects them continues from `prior_statistics`, adding one token's values
at a time in the order of positions, in float32: s = s + |zhat_t|, q = q + zhat_t^2 for every neuron. No partial sums
per chunk, block, tile or thread may be added to each other, because float addition is not associative: only then does
a prompt in chunks, or one whose beginning comes from the prefix cache, end with the same bits as a whole one (given the
same zhat_t). `snapshot_ends` asks for copies of the running sums on the way; the prefix cache keeps them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from glass_core.api import SamplingParams, StepCost, TokenLogprobs
from glass_core.config import EngineConfig
from glass_core.models.spec import ModelSpec
from glass_core.sparsity.choice import NeuronChooser
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan


@dataclass(frozen=True, slots=True)
class SampleInput:
    """Ask for the next token of a row. `generated_token_ids` are the tokens drawn so far: their count is the index of
    the draw (the random number depends on (seed, index) alone), their values feed the penalties."""

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    generated_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class StepRow:
    """Consecutive tokens of one sequence to run in this step.

    `token_ids` sit at positions start, start+1, …; keys and values of positions < start are already in the cache.
    `block_table[i]` is the KV block of positions i*block_size …; it covers start + len(token_ids) positions.
    `plan` None = dense. `sample` None = no token is drawn (an inner prefill chunk).
    `num_prompt_tokens` is the length of the sequence's prompt. Only dynamic RoPE reads it, whose frequencies depend on
    the length of the sequence: with it, results depend neither on chunking nor on preemption. None = the row's end.

    With `collect_statistics`: `prior_statistics` are the sums over positions 0 … start-1, to be continued (None = start
    from zero); they are shared with other rows and must not be written to. `snapshot_ends` are positions e, ascending,
    start < e <= start + len(token_ids): the sums over the positions before e are wanted. Both are empty otherwise.

    `refine_scales`, only with a refined plan: one factor > 0 per token, on all of its thresholds; empty = 1 for all.
    """

    sequence_id: str
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    plan: SparsityPlan | None = None
    collect_statistics: bool = False
    sample: SampleInput | None = None
    num_prompt_tokens: int | None = None
    prior_statistics: LocalStatistics | None = None
    snapshot_ends: tuple[int, ...] = ()
    refine_scales: tuple[float, ...] = ()

    @property
    def is_refined(self) -> bool:
        """Whether its tokens choose for themselves among the neurons of its plan."""
        return self.plan is not None and self.plan.refinement is not None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Rows of distinct sequences, run together in one step."""

    rows: tuple[StepRow, ...]


@dataclass(frozen=True, slots=True)
class RowResult:
    """`token_id` when the row asked for one, `cost` always, `logprobs` when its sampling parameters ask for them.

    `error` instead of a token says why none can be drawn for this row alone (its logits are not finite, say): a message
    fit for clients. The other rows are as good as ever.

    When the row collects: `statistics` = `prior_statistics` and this row's tokens, and `snapshots` = those sums at each
    of its `snapshot_ends`, in that order. Every one has arrays of its own (not views of a buffer that is written to
    again, nor of a larger array that would be kept alive); the engine keeps them beyond the step.

    `ffn_reads`, of a row with a refined plan: the share of FFN weights that its cascade alone reads, averaged over its
    tokens: (2 * num_inputs / hidden_size + num_down / m) / 3 of a layer, in the mean over layers, whatever the rest of
    the batch made the step read.
    """

    cost: StepCost
    token_id: int | None = None
    statistics: LocalStatistics | None = None
    snapshots: tuple[LocalStatistics, ...] = ()
    ffn_reads: float | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results in the order of the batch's rows."""

    rows: tuple[RowResult, ...]


class Runner(Protocol):
    """A compute runner. One folder in `runners/`, found by name; its package has `load(config) -> Runner`."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def fingerprint(self) -> str:
        """Identity of the loaded weights, compared with the artifact's."""
        ...

    @property
    def device(self) -> str: ...

    @property
    def isa(self) -> str | None:
        """The instruction set of the runner's own kernels; None for a runner without any."""
        ...

    @property
    def num_threads(self) -> int:
        """Threads a step computes with."""
        ...

    @property
    def kv_cache_dtype(self) -> str:
        """How keys and values are stored."""
        ...

    @property
    def num_parameters(self) -> int: ...

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks that fit the configured memory budget."""
        ...

    @property
    def refines(self) -> bool:
        """Whether rows may carry refined plans."""
        ...

    @property
    def choose_neurons(self) -> NeuronChooser | None:
        """A faster way to choose neurons, the reference's equal to the bit; None for a runner without one."""
        ...

    def view_bytes(self, budgets: Sequence[int]) -> int:
        """Bytes the views of a plan with these budgets (neurons per layer) will hold. 0 when views do not copy."""
        ...

    def neuron_magnitudes(self) -> npt.NDArray[np.float32]:
        """||gate row|| * ||up row|| per neuron, (num_layers, intermediate_size): the `magnitude` method's score."""
        ...

    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step: write K/V of every row's tokens, draw the tokens asked for."""
        ...

    def release(self, sequence_id: str) -> None:
        """Drop the sequence's views. Called on finish, abort and preemption; unknown ids are fine."""
        ...

    def close(self) -> None: ...


class RunnerModule(Protocol):
    """What a runner package exports."""

    def load(self, config: EngineConfig) -> Runner: ...
