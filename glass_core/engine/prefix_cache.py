"""PrefixCache: finds KV blocks that already hold the beginning of a prompt, and the statistics that belong to it.

A full block of prompt tokens has a key: a hash of its tokens and of the key of the block before it, so equal keys mean
equal tokens from the start. Only prompts are cached, because they run densely whatever the request's sparsity; keys
and values of generated tokens come from a pruned model and belong to their sequence alone. The chain begins with a
salt: prompts of different salts never meet, neither in blocks nor in snapshots nor in the wait for one being computed.

A request that selects neurons needs more than keys and values: the statistics of all its prompt tokens, bit for bit
those that it would collect itself. The cache therefore keeps snapshots of the running sums (see `runners/base.py`) at
some block ends, and such a request may reuse a prefix only up to a snapshot. A snapshot takes 8 bytes * layers *
neurons (0.37 MB for the default model, as much as one of its bfloat16 blocks), so not every block gets one. Snapshots
are taken where the next request is likely to continue (compare the state checkpoints that caches for recurrent models
place at the end of a request and at branching points, Marconi, arXiv 2411.19379):

  - at the last whole block of the prompt: the same prompt again, or the next turn of the same conversation;
  - where the prompt leaves what was cached already: a system prompt shared by many requests, from the third one on;
  - every `SNAPSHOT_INTERVAL` blocks, so that the second one finds something too.

They have a byte budget of their own and are dropped least recently used first, or with their block. Dense requests use
and fill the cache without statistics: making them collect would slow every dense prefill for the sake of servers that
mix dense and sparse requests with the same prefix, and such a server pays for the snapshot once, with the first sparse
one.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from glass_core.engine.kv_blocks import BlockAllocator
from glass_core.sparsity.local_stats import LocalStatistics

KEY_BYTES = 32  # collision resistant: nobody may craft a prompt that finds somebody else's blocks
SNAPSHOT_INTERVAL = 16


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """What a prompt can reuse: `blocks` and, if it needs statistics, the sums over the tokens in them.

    `num_matched` counts the blocks whose keys and values are there, with or without statistics.
    """

    blocks: tuple[int, ...] = ()
    num_matched: int = 0
    statistics: LocalStatistics | None = None


class PrefixCache:
    """Keys of cached blocks and snapshots of statistics, on top of the allocator that counts the blocks' references."""

    def __init__(self, allocator: BlockAllocator, *, snapshot_bytes: int, statistics_bytes: int) -> None:
        """`snapshot_bytes` is what a snapshot takes, `statistics_bytes` the budget of all together."""
        self._has_room = snapshot_bytes <= statistics_bytes
        self._statistics_bytes = statistics_bytes
        self._statistics_bytes_used = 0
        self._allocator = allocator
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._snapshots: dict[bytes, LocalStatistics] = {}  # least recently used first

    @property
    def num_snapshots(self) -> int:
        return len(self._snapshots)

    def find(self, keys: Sequence[bytes], *, with_statistics: bool) -> CachedPrefix:
        """The longest cached prefix of a prompt with these keys; `with_statistics`: up to the deepest snapshot."""
        matched = self._match(keys)
        if not with_statistics:
            return CachedPrefix(matched, len(matched))
        for depth in range(len(matched), 0, -1):
            if keys[depth - 1] in self._snapshots:
                return CachedPrefix(matched[:depth], len(matched), self._use_snapshot(keys[depth - 1]))
        return CachedPrefix(num_matched=len(matched))

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks from the allocator; what they cached until now is forgotten. Raises ValueError as the allocator."""
        blocks = self._allocator.allocate(num_blocks)
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]
                self._drop_snapshot(key)
        return blocks

    def insert(self, key: bytes, block: int) -> None:
        """Make a held block, complete and never written again, findable. Of two with equal content the first stays."""
        known = self._block_of.get(key)
        if known is not None:
            self._allocator.touch(known)
            return
        self._allocator.keep(block)
        self._block_of[key] = block
        self._key_of[block] = key

    def insert_snapshot(self, key: bytes, statistics: LocalStatistics) -> None:
        """Keep the sums over all tokens up to the end of this key's block, if that is cached."""
        if key not in self._block_of or statistics.num_bytes > self._statistics_bytes:
            return
        self._drop_snapshot(key)
        while self._statistics_bytes_used + statistics.num_bytes > self._statistics_bytes:
            self._drop_snapshot(next(iter(self._snapshots)))
        self._snapshots[key] = statistics
        self._statistics_bytes_used += statistics.num_bytes

    def snapshot_depths(self, prefix: CachedPrefix, num_blocks: int) -> tuple[int, ...]:
        """After how many blocks of a prompt of `num_blocks` reusable ones snapshots are wanted, ascending."""
        if not self._has_room:
            return ()
        regular = range(SNAPSHOT_INTERVAL, num_blocks + 1, SNAPSHOT_INTERVAL)
        depths = {*regular, prefix.num_matched, num_blocks}
        return tuple(sorted(depth for depth in depths if depth > len(prefix.blocks)))

    def _match(self, keys: Iterable[bytes]) -> tuple[int, ...]:
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return tuple(blocks)

    def _drop_snapshot(self, key: bytes) -> None:
        snapshot = self._snapshots.pop(key, None)
        self._statistics_bytes_used -= 0 if snapshot is None else snapshot.num_bytes

    def _use_snapshot(self, key: bytes) -> LocalStatistics:
        statistics = self._snapshots.pop(key)
        self._snapshots[key] = statistics
        return statistics


def block_keys(token_ids: Sequence[int], block_size: int, *, salt: bytes = b"") -> tuple[bytes, ...]:
    """Keys of the whole blocks of a prompt, a hash chain. Prompts of different salts never share a block."""
    key = blake2b(salt, digest_size=KEY_BYTES).digest()
    tokens = array("q", token_ids)
    keys = []
    for end in range(block_size, len(tokens) + 1, block_size):
        key = blake2b(key + tokens[end - block_size : end].tobytes(), digest_size=KEY_BYTES).digest()
        keys.append(key)
    return tuple(keys)
