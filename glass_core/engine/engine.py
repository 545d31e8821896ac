"""Engine: the synchronous loop of continuous batching. `step()` is schedule → execute → publish.

Token ids in, token events out. One thread at a time may call it (see `worker.py`), except `info` and `check`, which
only read what is fixed after construction, and `stats`. Requests join and leave between steps.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NoReturn

from glass_core.api import (
    EngineStats,
    Finish,
    FinishReason,
    GenerationRequest,
    StepCost,
    TokenEvent,
    TokenLogprobs,
)
from glass_core.config import EngineConfig
from glass_core.engine.description import describe
from glass_core.engine.failures import STEP_FAILED, RowFailedError, StepFailedError
from glass_core.engine.kv_blocks import BlockAllocator
from glass_core.engine.limits import limits_of
from glass_core.engine.prefix_cache import PrefixCache, block_keys
from glass_core.engine.scheduler import Chunk, Scheduler
from glass_core.engine.sequence import Sequence
from glass_core.errors import InvalidRequestError
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import RowResult, Runner, StepBatch, StepRow
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.selection import PlanSelector

logger = logging.getLogger(__name__)


class Engine:
    """Owns sequences, plans and block tables; the runner owns the memory behind them."""

    def __init__(
        self,
        runner: Runner,
        selector: PlanSelector,
        config: EngineConfig,
        *,
        artifact: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self._runner = runner
        self._selector = selector
        self._limits = limits_of(runner, config)
        allocator = BlockAllocator(num_blocks=runner.num_kv_blocks, block_size=config.cache.block_size)
        self._allocator = allocator
        self._prefixes = PrefixCache(
            allocator,
            snapshot_bytes=LocalStatistics.zeros(runner.spec.num_layers, runner.spec.intermediate_size).num_bytes,
            statistics_bytes=config.cache.prefix_statistics_bytes,
        )
        self._scheduler = Scheduler(
            config.scheduler, allocator, self._prefixes, view_cache_bytes=config.cache.view_cache_bytes
        )
        self._sequences: dict[str, Sequence] = {}
        self._outbox: list[TokenEvent] = []
        self._cost_by_method: dict[str, StepCost] = {}
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_steps = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        described = describe(runner, selector, config, self._limits.max_model_len, artifact)
        self.info = replace(described, notes=(*notes, *described.notes))

    @property
    def has_work(self) -> bool:
        """Whether `step()` would do or deliver anything."""
        return self._scheduler.has_work or bool(self._outbox)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._scheduler.waiting)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Ids of the requests that still owe their terminal event."""
        return tuple(self._sequences)

    def check(self, request: GenerationRequest) -> None:
        """Raise what makes the request unservable: InvalidRequestError, ContextLengthError, MissingStatisticsError."""
        self._limits.check(request)
        self._selector.check(request.sparsity)
        self._limits.check_view_bytes(self._view_bytes(self._selector.budgets(request.sparsity)))

    def add(self, request: GenerationRequest) -> None:
        """Queue a request. Raises as `check`, and InvalidRequestError for an id that is in use."""
        if request.request_id in self._sequences:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        self.check(request)
        budgets = self._selector.budgets(request.sparsity)
        sequence = Sequence(
            request,
            is_sparse=budgets is not None,
            collects=budgets is not None and self._selector.needs_statistics(request.sparsity),
            view_bytes=self._view_bytes(budgets),
            block_keys=self._block_keys(request),
        )
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """End a request now; its terminal event comes with the next step. Unknown ids are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence, reason, time.monotonic())

    def abort(self, request_id: str) -> None:
        self.finish(request_id, FinishReason.ABORTED)

    def step(self) -> list[TokenEvent]:
        """Run one step and return what is new.

        Raises StepFailedError after dropping the requests it names; `take_events` still has the others' events.
        """
        schedule = self._scheduler.schedule()
        for sequence in schedule.preempted:
            self._runner.release(sequence.id)
        if schedule.chunks:
            results = self._execute(schedule.chunks)
            self._publish(schedule.chunks, results)
        return self.take_events()

    def take_events(self) -> list[TokenEvent]:
        """Events not handed over yet."""
        events, self._outbox = self._outbox, []
        return events

    def stats(self) -> EngineStats:
        """Counters as they are now, from any thread: each is read at once, together they may straddle a step."""
        return EngineStats(
            num_requests_running=len(self._scheduler.running),
            num_requests_waiting=len(self._scheduler.waiting),
            kv_blocks_total=self._allocator.num_blocks,
            kv_blocks_used=self._allocator.num_used,
            view_bytes_used=self._scheduler.view_bytes_used,
            num_preemptions=self._scheduler.num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_steps=self._num_steps,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            cost_by_method=dict(self._cost_by_method),
        )

    def close(self) -> None:
        """Free the runner's memory. The engine cannot be used afterwards."""
        self._runner.close()

    def _view_bytes(self, budgets: tuple[int, ...] | None) -> int:
        return 0 if budgets is None else self._runner.view_bytes(budgets)

    def _block_keys(self, request: GenerationRequest) -> tuple[bytes, ...]:
        if not self.config.cache.enable_prefix_caching:
            return ()
        prompt = request.prompt_token_ids
        salt = _rope_salt(self._runner.spec, len(prompt))
        if request.cache_salt is not None:
            salt += b"|" + request.cache_salt.encode("utf-8", "surrogatepass")  # the first part has digits only
        return block_keys(prompt, self._allocator.block_size, salt=salt)

    def _execute(self, chunks: tuple[Chunk, ...]) -> tuple[RowResult, ...]:
        now = time.monotonic()
        for chunk in chunks:
            if chunk.sequence.first_scheduled is None:
                chunk.sequence.first_scheduled = now
                self._count_lookup(chunk.sequence)
        rows = tuple(chunk.sequence.row(chunk.num_tokens, self._allocator.block_size) for chunk in chunks)
        self._num_steps += 1
        try:
            results = self._runner.execute(StepBatch(rows)).rows
            _check_results(rows, results)
        except Exception as error:
            self._fail({chunk.sequence.id: error for chunk in chunks})
        return results

    def _publish(self, chunks: tuple[Chunk, ...], results: tuple[RowResult, ...]) -> None:
        executed = time.monotonic()
        failed: dict[str, Exception] = {}
        for chunk, result in zip(chunks, results, strict=True):
            sequence = chunk.sequence
            self._account(sequence.method, result.cost)
            if result.error is not None:
                failed[sequence.id] = RowFailedError(result.error)
                continue
            self._cache_prompt(sequence, chunk.num_tokens, result)
            sequence.advance(chunk.num_tokens, result)
            if sequence.prompt_done and not sequence.plan_frozen:
                try:
                    self._finish_prefill(sequence, executed)
                except Exception as error:
                    failed[sequence.id] = error
        self._emit_tokens(
            (chunk.sequence, result.logprobs)
            for chunk, result in zip(chunks, results, strict=True)
            if result.token_id is not None and chunk.sequence.id not in failed
        )
        if failed:
            self._fail(failed)

    def _count_lookup(self, sequence: Sequence) -> None:
        """Once per request; that a preempted one finds its own blocks again saves work, but is no hit."""
        if self.config.cache.enable_prefix_caching:
            self._prefix_cache_queries += sequence.num_prompt
            self._prefix_cache_hits += sequence.num_cached or 0

    def _cache_prompt(self, sequence: Sequence, num_tokens: int, result: RowResult) -> None:
        """Make findable what the next `num_tokens` tokens complete: whole blocks of the prompt, and their sums."""
        size, start = self._allocator.block_size, sequence.num_computed
        for index in range(start // size, min((start + num_tokens) // size, len(sequence.block_keys))):
            self._prefixes.insert(sequence.block_keys[index], sequence.block_table[index])
        for snapshot in result.snapshots:
            self._prefixes.insert_snapshot(sequence.block_keys[snapshot.num_tokens // size - 1], snapshot)

    def _account(self, method: str, cost: StepCost) -> None:
        self._cost_by_method[method] = self._cost_by_method.get(method, StepCost()) + cost

    def _finish_prefill(self, sequence: Sequence, now: float) -> None:
        """The prompt is in the cache for the first time: choose the neurons, once and for all."""
        sequence.prefill_finished = now
        self._num_prompt_tokens += sequence.num_prompt
        sequence.plan_frozen = True
        if sequence.is_sparse:
            started = time.monotonic()
            sequence.freeze(self._selector.select(sequence.request.sparsity, sequence.statistics))
            sequence.selection_seconds = time.monotonic() - started

    def _emit_tokens(self, drawn: Iterable[tuple[Sequence, TokenLogprobs | None]]) -> None:
        now = time.monotonic()
        for sequence, logprobs in drawn:
            self._num_generated_tokens += 1
            if sequence.first_token is None:
                sequence.first_token = now
            reason = sequence.stop_reason()
            finish = None if reason is None else self._close(sequence, reason, now)
            self._outbox.append(TokenEvent(sequence.id, now, sequence.generated[-1], finish, logprobs))

    def _end(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        self._outbox.append(TokenEvent(sequence.id, now, finish=self._close(sequence, reason, now)))

    def _close(self, sequence: Sequence, reason: FinishReason, now: float) -> Finish:
        self._drop(sequence)
        return sequence.end(reason, now)

    def _fail(self, errors: Mapping[str, Exception]) -> NoReturn:
        # The log gets the causes; the message for clients has no paths, addresses or traces.
        for error in dict.fromkeys(errors.values()):
            num_requests = sum(other is error for other in errors.values())
            logger.error("a step failed, dropping %d requests", num_requests, exc_info=error)
        for request_id in errors:
            self._drop(self._sequences[request_id])
        messages = {
            request_id: str(error) if isinstance(error, RowFailedError) else STEP_FAILED
            for request_id, error in errors.items()
        }
        raise StepFailedError(messages) from next(iter(errors.values()))

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence and free its memory: KV blocks and views."""
        del self._sequences[sequence.id]
        self._scheduler.remove(sequence)
        self._runner.release(sequence.id)


def _check_results(rows: tuple[StepRow, ...], results: tuple[RowResult, ...]) -> None:
    """A runner that forgets a token or the statistics must fail the step, not stall or corrupt a sequence."""
    for row, result in zip(rows, results, strict=True):
        if result.error is not None and row.sample is not None and result.token_id is None:
            continue  # what else it lacks does not matter any more
        if result.error is not None or (row.sample is None) != (result.token_id is None):
            raise RuntimeError("the runner drew a token that was not asked for, or did not draw one that was")
        end = row.start + len(row.token_ids)
        if row.collect_statistics and (result.statistics is None or result.statistics.num_tokens != end):
            raise RuntimeError("the runner returned no statistics of the prompt so far for a row that asked for them")
        if tuple(snapshot.num_tokens for snapshot in result.snapshots) != row.snapshot_ends:
            raise RuntimeError("the runner returned other snapshots of the statistics than those asked for")
        if (result.ffn_reads is not None) != row.is_refined:
            raise RuntimeError("the runner told no reads of a refined row, or told those of another one")


def _rope_salt(spec: ModelSpec, num_prompt: int) -> bytes:
    """Dynamic RoPE rotates a prompt by its own length once it passes the trained one: only equal lengths may share."""
    if spec.rope.kind != "dynamic":
        return b""
    trained = spec.rope.original_max_position or spec.max_position_embeddings
    return str(max(num_prompt, trained)).encode()
