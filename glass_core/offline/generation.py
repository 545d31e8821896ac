"""Generation for the offline tools, straight on a runner: fixed batches, no scheduler, nothing joins or leaves early.

Every sequence owns its KV blocks for its whole life, so a run is a few loops over `Runner.execute`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from glass_core.api import SamplingParams
from glass_core.config import CacheConfig
from glass_core.errors import ConfigurationError
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import Runner, SampleInput, StepBatch, StepRow
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan

BLOCK_SIZE = CacheConfig().block_size


@dataclass(slots=True)
class OfflineSequence:
    """One sequence being generated. `plan` None = dense decode; `statistics` are its prompt's, after the prefill."""

    sequence_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    block_table: tuple[int, ...]
    generated: list[int] = field(default_factory=list)
    plan: SparsityPlan | None = None
    statistics: LocalStatistics | None = None

    @property
    def is_finished(self) -> bool:
        if len(self.generated) >= self.sampling.max_tokens:
            return True
        stopped = bool(self.generated) and self.generated[-1] in self.sampling.stop_token_ids
        return stopped and not self.sampling.ignore_eos

    def prefill_row(self) -> StepRow:
        """The whole prompt, dense, with statistics collected."""
        return self._row(self.prompt, start=0, collect_statistics=True)

    def decode_row(self) -> StepRow:
        """The newest token, under the plan."""
        start = len(self.prompt) + len(self.generated) - 1
        return self._row((self.generated[-1],), start=start, plan=self.plan)

    def _row(
        self,
        token_ids: tuple[int, ...],
        *,
        start: int,
        plan: SparsityPlan | None = None,
        collect_statistics: bool = False,
    ) -> StepRow:
        return StepRow(
            sequence_id=self.sequence_id,
            token_ids=token_ids,
            start=start,
            block_table=self.block_table,
            plan=plan,
            collect_statistics=collect_statistics,
            sample=SampleInput(self.sampling, self.prompt, self.generated),
            num_prompt_tokens=len(self.prompt),
        )


def lay_out(prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]) -> list[OfflineSequence]:
    """Sequences with disjoint block tables, each long enough for prompt + max_tokens. No prompt may be empty."""
    sequences, next_block = [], 0
    for index, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
        num_blocks = blocks_for(len(prompt) + params.max_tokens)
        blocks = tuple(range(next_block, next_block + num_blocks))
        next_block += num_blocks
        sequences.append(OfflineSequence(f"offline-{index}", tuple(prompt), params, blocks))
    return sequences


def blocks_for(num_tokens: int) -> int:
    """KV blocks that hold `num_tokens` positions."""
    return -(-num_tokens // BLOCK_SIZE)


def cache_for(spec: ModelSpec, *, num_sequences: int, num_tokens: int, bytes_per_value: int) -> CacheConfig:
    """A KV budget of exactly `num_sequences` sequences of up to `num_tokens` tokens."""
    per_block = 2 * spec.num_layers * BLOCK_SIZE * spec.kv_size * bytes_per_value
    return CacheConfig(BLOCK_SIZE, kv_cache_bytes=num_sequences * blocks_for(num_tokens) * per_block)


def prefill(runner: Runner, sequences: Sequence[OfflineSequence]) -> None:
    """Run the prompts one by one (a step's activations stay small) and draw each one's first token."""
    _check_room(runner, sequences)
    for sequence in sequences:
        (result,) = runner.execute(StepBatch((sequence.prefill_row(),))).rows
        assert result.token_id is not None and result.statistics is not None
        sequence.statistics = result.statistics
        sequence.generated.append(result.token_id)


def decode_step(runner: Runner, sequences: Sequence[OfflineSequence]) -> None:
    """One more token for every sequence given."""
    step = runner.execute(StepBatch(tuple(sequence.decode_row() for sequence in sequences)))
    for sequence, result in zip(sequences, step.rows, strict=True):
        assert result.token_id is not None
        sequence.generated.append(result.token_id)


def generate(
    runner: Runner, sequences: Sequence[OfflineSequence], on_step: Callable[[], None] = lambda: None
) -> list[tuple[int, ...]]:
    """Generated tokens of every sequence, a final stop token included; `on_step` is called after each decode step."""
    prefill(runner, sequences)
    running = [sequence for sequence in sequences if not sequence.is_finished]
    while running:
        decode_step(runner, running)
        running = [sequence for sequence in running if not sequence.is_finished]
        on_step()
    for sequence in sequences:
        runner.release(sequence.sequence_id)
    return [tuple(sequence.generated) for sequence in sequences]


def _check_room(runner: Runner, sequences: Sequence[OfflineSequence]) -> None:
    needed = sum(len(sequence.block_table) for sequence in sequences)
    if needed > runner.num_kv_blocks:
        raise ConfigurationError(f"{needed} KV blocks are needed for this batch, the runner has {runner.num_kv_blocks}")
