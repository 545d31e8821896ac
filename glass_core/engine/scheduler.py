"""Scheduler: who runs in the next step, with how many tokens. Pure policy; it touches no tensor and no clock.

One step, in this order, within `max_step_tokens`:
  1. every RUNNING sequence gets its one token, oldest first; when KV blocks run out the youngest is preempted;
  2. PREFILLING sequences get chunks, first come first served;
  3. waiting ones are admitted, first come first served, while KV blocks and view bytes allow.

`running` is in order of arrival: only its tail is ever preempted, and preempted sequences wait at the head of the
queue. The oldest sequence therefore always advances, and with it everything finishes. Blocks shared with others do not
change that: kept ones are as good as free, and once the oldest is alone, it shares with nobody.

Admission looks the prompt up in the prefix cache; prefill then begins after what was found. A prompt of which a running
one is just computing more (the choices of one request, the same system prompt in a burst) waits for that, rather than
computing it as well. It waits for steps that are run anyway: prefilling sequences advance in each.
"""

from collections import deque
from dataclasses import dataclass

from glass_core.config import SchedulerConfig
from glass_core.engine.kv_blocks import BlockAllocator
from glass_core.engine.prefix_cache import CachedPrefix, PrefixCache
from glass_core.engine.sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` tokens of a sequence."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step: the chunks to run, and the sequences preempted for them, whose views must be released."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]


class Scheduler:
    """Owns the queues, the KV blocks and the view-byte budget. Callers make sure that each sequence fits alone."""

    def __init__(
        self, config: SchedulerConfig, allocator: BlockAllocator, prefixes: PrefixCache, *, view_cache_bytes: int
    ) -> None:
        self.config = config
        self.allocator = allocator
        self.prefixes = prefixes
        self.view_cache_bytes = view_cache_bytes
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.view_bytes_used = 0  # reserved by the admitted sequences

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        else:
            self._leave(sequence)

    def schedule(self) -> Schedule:
        preempted: list[Sequence] = []
        chunks = self._schedule_decodes(preempted)
        budget = self.config.max_step_tokens - len(chunks)
        for sequence in self.running:
            if budget and sequence.status is SequenceStatus.PREFILLING:
                budget = self._schedule_chunk(sequence, budget, chunks)
        while budget and not preempted and (newcomer := self._admit_next()) is not None:
            budget = self._schedule_chunk(newcomer, budget, chunks)
        return Schedule(tuple(chunks), tuple(preempted))

    def _schedule_decodes(self, preempted: list[Sequence]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in tuple(self.running):
            if sequence.status is SequenceStatus.RUNNING and self._grow(sequence, preempted):
                chunks.append(Chunk(sequence, 1))
        return chunks

    def _grow(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Give a decode row room for its token. False when the sequence itself was the youngest and had to go."""
        missing = self.allocator.blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if missing == 0:  # as in most steps
            return True
        while missing > self.allocator.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        sequence.block_table += self.prefixes.allocate(missing)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._leave(victim)
        victim.preempt()
        self.waiting.appendleft(victim)
        self.num_preemptions += 1

    @staticmethod
    def _schedule_chunk(sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        """Add the sequence's next chunk; returns the budget left."""
        num_tokens = min(sequence.num_ready, budget)
        chunks.append(Chunk(sequence, num_tokens))
        return budget - num_tokens

    def _admit_next(self) -> Sequence | None:
        """The head of the queue, if it may run now. Nobody overtakes it."""
        if not self.waiting or len(self.running) >= self.config.max_num_sequences:
            return None
        head = self.waiting[0]
        keys = head.reusable_keys(self.allocator.block_size)
        prefix = self.prefixes.find(keys, with_statistics=head.needs_statistics)
        if not self._fits(head, prefix) or self._is_coming(keys[len(prefix.blocks) :], head):
            return None
        self._admit(self.waiting.popleft(), prefix, self.prefixes.snapshot_depths(prefix, len(keys)))
        return head

    def _is_coming(self, missing: tuple[bytes, ...], head: Sequence) -> bool:
        """Whether a running sequence will make more of the head's prompt usable for it."""
        return any(
            not sequence.coming_keys(self.allocator.block_size, head).isdisjoint(missing)
            for sequence in self.running
            if missing and sequence.status is SequenceStatus.PREFILLING
        )

    def _fits(self, head: Sequence, prefix: CachedPrefix) -> bool:
        # Blocks that others hold cost nothing; kept ones count as free, so reusing them takes them from there.
        shared = sum(self.allocator.is_held(block) for block in prefix.blocks)
        # One spare block per admitted sequence: a newcomer that their next tokens would preempt is wasted prefill.
        needed = self.allocator.blocks_for(head.num_tokens) - shared + len(self.running)
        fits_views = self.view_bytes_used + head.view_bytes <= self.view_cache_bytes
        return fits_views and needed <= self.allocator.num_free

    def _admit(self, sequence: Sequence, prefix: CachedPrefix, depths: tuple[int, ...]) -> None:
        # Held first, so that making room for the others cannot evict them.
        self.allocator.share(prefix.blocks)
        # All blocks of the tokens it has: prefill then never runs out, only decoding can.
        missing = self.allocator.blocks_for(sequence.num_tokens) - len(prefix.blocks)
        block_size = self.allocator.block_size
        sequence.admit(
            [*prefix.blocks, *self.prefixes.allocate(missing)],
            num_cached=len(prefix.blocks) * block_size,
            statistics=prefix.statistics,
            snapshot_ends=tuple(depth * block_size for depth in depths) if sequence.needs_statistics else (),
        )
        self.running.append(sequence)
        self.view_bytes_used += sequence.view_bytes

    def _leave(self, sequence: Sequence) -> None:
        """The opposite of `_admit`."""
        self.running.remove(sequence)
        self.view_bytes_used -= sequence.view_bytes
        self.allocator.free(sequence.block_table)
        sequence.block_table = []
