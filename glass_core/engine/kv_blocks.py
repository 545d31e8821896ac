"""BlockAllocator: which KV blocks are free. Block ids only; the memory behind them belongs to the runner."""

from collections.abc import Iterable


class BlockAllocator:
    """Hands out ids of fixed-size KV blocks. Conserves them: every id is either free or held, never both."""

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Last freed, first reused: a warm block is more likely to be in a CPU cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._held)

    def blocks_for(self, num_positions: int) -> int:
        """Blocks that hold this many token positions."""
        return -(-num_positions // self.block_size)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks. Raises ValueError when fewer are free: callers look at `num_free` first."""
        if num_blocks > len(self._free):
            raise ValueError(f"{num_blocks} KV blocks asked for, {len(self._free)} free")
        blocks = [self._free.pop() for _ in range(num_blocks)]
        self._held.update(blocks)
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises ValueError for a block that is not held (a double free)."""
        for block in blocks:
            if block not in self._held:
                raise ValueError(f"KV block {block} is not held")
            self._held.remove(block)
            self._free.append(block)
