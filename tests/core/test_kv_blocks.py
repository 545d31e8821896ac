"""The block allocator conserves blocks and refuses misuse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.engine.kv_blocks import BlockAllocator


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(-4, 4), max_size=30))
def test_every_block_is_either_free_or_held(num_blocks: int, operations: list[int]) -> None:
    allocator = BlockAllocator(num_blocks=num_blocks, block_size=4)
    held: list[int] = []
    for operation in operations:
        if operation >= 0 and operation <= allocator.num_free:
            held += allocator.allocate(operation)
        elif operation < 0:
            allocator.free([held.pop() for _ in range(min(-operation, len(held)))])
        assert len(set(held)) == len(held)
        assert set(held) <= set(range(num_blocks))
        assert (allocator.num_used, allocator.num_free) == (len(held), num_blocks - len(held))


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for_rounds_up(positions: int, blocks: int) -> None:
    assert BlockAllocator(num_blocks=2, block_size=4).blocks_for(positions) == blocks


def test_a_double_free_is_refused() -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=4)
    [block] = allocator.allocate(1)
    allocator.free([block])
    with pytest.raises(ValueError, match="not held"):
        allocator.free([block])


def test_more_blocks_than_free_are_refused_and_nothing_is_taken() -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=4)
    with pytest.raises(ValueError, match="3 KV blocks asked for, 2 free"):
        allocator.allocate(3)
    assert allocator.num_free == 2
