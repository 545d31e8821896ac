"""BlockAllocator: who needs which KV block. Block ids only; the memory behind them belongs to the runner."""

from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Counts references to fixed-size KV blocks. It conserves them: every block is in exactly one of three states.

    free: its content means nothing. held: referenced by one or more sequences. kept: referenced by nobody, but its
    content may be wanted again; it is given out when no free block is left, least recently used first.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Last freed, first reused: a warm block is more likely to be in a CPU cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references: dict[int, int] = {}
        self._kept: dict[int, None] = {}  # least recently used first
        self._worth_keeping: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, kept ones included."""
        return len(self._free) + len(self._kept)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return len(self._references)

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def blocks_for(self, num_positions: int) -> int:
        """Blocks that hold this many token positions."""
        return -(-num_positions // self.block_size)

    def is_held(self, block: int) -> bool:
        return block in self._references

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks with one reference each; the content of kept ones is lost, which their keeper must notice.

        Raises ValueError when fewer can be had: callers look at `num_free` first.
        """
        if num_blocks > self.num_free:
            raise ValueError(f"{num_blocks} KV blocks asked for, {self.num_free} free")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        self._references.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to held or kept blocks. Raises ValueError for a free one."""
        for block in blocks:
            if block in self._kept:
                del self._kept[block]
                self._references[block] = 1
            else:
                self._references[block] = self._count(block) + 1

    def keep(self, block: int) -> None:
        """Keep a held block's content when nobody refers to it any more. Raises ValueError when it is not held."""
        self._count(block)
        self._worth_keeping.add(block)

    def touch(self, block: int) -> None:
        """Count a kept block as just used."""
        if block in self._kept:
            del self._kept[block]
            self._kept[block] = None

    def free(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each, the last block first: of a prefix, the end is to be evicted first.

        Raises ValueError for a block that is not held (a double free).
        """
        for block in reversed(blocks):
            count = self._count(block)
            if count > 1:
                self._references[block] = count - 1
            else:
                self._release(block)

    def _release(self, block: int) -> None:
        del self._references[block]
        if block in self._worth_keeping:
            self._kept[block] = None
        else:
            self._free.append(block)

    def _evict(self) -> int:
        block = next(iter(self._kept))
        del self._kept[block]
        self._worth_keeping.remove(block)
        return block

    def _count(self, block: int) -> int:
        if block not in self._references:
            raise ValueError(f"KV block {block} is not held")
        return self._references[block]
