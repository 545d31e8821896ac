"""The block allocator conserves blocks, counts references, gives out kept blocks last, and refuses misuse."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.engine.kv_blocks import BlockAllocator


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(["allocate", "free", "share", "keep"]), st.integers(0, 5)), max_size=40),
)
def test_every_block_is_free_held_or_kept(num_blocks: int, operations: list[tuple[str, int]]) -> None:
    allocator = BlockAllocator(num_blocks=num_blocks, block_size=4)
    tables: list[list[int]] = []
    worth: set[int] = set()
    for operation, number in operations:
        if operation == "allocate" and number <= allocator.num_free:
            tables.append(allocator.allocate(number))
            worth -= set(tables[-1])
        elif tables and operation == "free":
            allocator.free(tables.pop(number % len(tables)))
        elif tables and operation == "share":
            tables.append(list(tables[number % len(tables)]))
            allocator.share(tables[-1])
        elif tables and operation == "keep":
            for block in tables[number % len(tables)]:
                allocator.keep(block)
                worth.add(block)
        held = Counter(block for table in tables for block in table)
        assert set(held) <= set(range(num_blocks))
        assert all(allocator.is_held(block) == (block in held) for block in range(num_blocks))
        assert (allocator.num_used, allocator.num_free) == (len(held), num_blocks - len(held))
        assert allocator.num_kept == len(worth - set(held))


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for_rounds_up(positions: int, blocks: int) -> None:
    assert BlockAllocator(num_blocks=2, block_size=4).blocks_for(positions) == blocks


def test_a_double_free_is_refused() -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=4)
    [block] = allocator.allocate(1)
    allocator.free([block])
    with pytest.raises(ValueError, match="not held"):
        allocator.free([block])


@pytest.mark.parametrize("operation", ["share", "keep"])
def test_a_free_block_has_no_content_to_share_or_keep(operation: str) -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=4)
    [block] = allocator.allocate(1)
    allocator.free([block])
    with pytest.raises(ValueError, match="not held"):
        getattr(allocator, operation)([block] if operation == "share" else block)


def test_more_blocks_than_free_are_refused_and_nothing_is_taken() -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=4)
    with pytest.raises(ValueError, match="3 KV blocks asked for, 2 free"):
        allocator.allocate(3)
    assert allocator.num_free == 2


def kept_blocks(allocator: BlockAllocator, num_blocks: int) -> list[int]:
    """Blocks that were held as one table, and are now kept."""
    table = allocator.allocate(num_blocks)
    for block in table:
        allocator.keep(block)
    allocator.free(table)
    return table


def test_kept_blocks_go_last_the_end_of_a_prefix_before_its_beginning() -> None:
    allocator = BlockAllocator(num_blocks=4, block_size=4)
    first = kept_blocks(allocator, 2)
    [second] = kept_blocks(allocator, 1)
    [free] = {0, 1, 2, 3} - {*first, second}
    assert [allocator.allocate(1)[0] for _ in range(4)] == [free, first[1], first[0], second]


def test_a_used_block_is_evicted_later() -> None:
    allocator = BlockAllocator(num_blocks=3, block_size=4)
    (a,), (b,), (c,) = (kept_blocks(allocator, 1) for _ in range(3))
    allocator.touch(a)
    allocator.share([b])
    allocator.free([b])
    assert allocator.allocate(3) == [c, a, b]
    allocator.touch(a)  # held: nothing to do
    allocator.free([a, b, c])
    assert allocator.num_kept == 0, "given out anew, they hold nothing worth keeping"


def test_a_shared_block_is_free_when_the_last_one_gives_it_back() -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=4)
    table = allocator.allocate(1)
    allocator.share(table)
    allocator.free(table)
    assert allocator.is_held(table[0])
    allocator.free(table)
    assert (allocator.num_used, allocator.num_free) == (0, 2)
