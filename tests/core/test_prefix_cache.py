"""The prefix cache alone: keys, matching, statistics, eviction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.engine.kv_blocks import BlockAllocator
from glass_core.engine.prefix_cache import CachedPrefix, PrefixCache, block_keys
from glass_core.sparsity.local_stats import LocalStatistics

SNAPSHOT_BYTES = LocalStatistics.zeros(3, 5).num_bytes
PROMPT = list(range(12))


def snapshot(num_tokens: int = 4) -> LocalStatistics:
    ones = np.ones((3, 5), np.float32)
    return LocalStatistics(ones, ones, num_tokens)


class Cache:
    """A cache of blocks of four tokens, filled like an engine does."""

    def __init__(self, *, num_blocks: int = 8, statistics_bytes: int = 1000) -> None:
        self.allocator = BlockAllocator(num_blocks=num_blocks, block_size=4)
        self.prefixes = PrefixCache(self.allocator, snapshot_bytes=SNAPSHOT_BYTES, statistics_bytes=statistics_bytes)

    def fill(self, prompt: list[int], *, snapshots: tuple[int, ...] = ()) -> list[int]:
        """Run a prompt to its end; `snapshots` are numbers of blocks."""
        keys = block_keys(prompt, 4)
        table = self.prefixes.allocate(len(keys))
        for key, block in zip(keys, table, strict=True):
            self.prefixes.insert(key, block)
        for depth in snapshots:
            self.prefixes.insert_snapshot(keys[depth - 1], snapshot(depth * 4))
        self.allocator.free(table)
        return table

    def find(self, prompt: list[int], *, with_statistics: bool = False) -> CachedPrefix:
        return self.prefixes.find(block_keys(prompt, 4), with_statistics=with_statistics)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=12), st.lists(st.integers(0, 1), max_size=12), st.integers(1, 5))
def test_keys_are_equal_as_far_as_the_tokens_are(first: list[int], second: list[int], block_size: int) -> None:
    ours, theirs = block_keys(first, block_size), block_keys(second, block_size)
    assert len(ours) == len(first) // block_size
    for depth, (a, b) in enumerate(zip(ours, theirs, strict=False), 1):
        assert (a == b) == (first[: depth * block_size] == second[: depth * block_size])


def test_salted_keys_never_meet() -> None:
    assert not set(block_keys(PROMPT, 4)) & set(block_keys(PROMPT, 4, salt=b"other"))


def test_large_token_ids_have_keys() -> None:
    assert block_keys([2**31, 1], 1) != block_keys([0, 1], 1)


def test_a_snapshot_takes_the_bytes_of_its_arrays() -> None:
    assert 2 * snapshot().sum_abs.nbytes == SNAPSHOT_BYTES


def test_the_longest_common_prefix_is_found() -> None:
    cache = Cache()
    table = cache.fill(PROMPT)
    assert cache.find(PROMPT) == CachedPrefix(tuple(table), 3)
    assert cache.find([*PROMPT[:9], 0, 0, 0]) == CachedPrefix(tuple(table[:2]), 2)
    assert cache.find([9, *PROMPT[1:]]) == CachedPrefix()
    assert cache.find([]) == CachedPrefix()


def test_with_statistics_the_prefix_ends_at_the_deepest_snapshot() -> None:
    cache = Cache()
    table = cache.fill(PROMPT, snapshots=(1, 2))
    found = cache.find(PROMPT, with_statistics=True)
    assert (found.blocks, found.num_matched) == (tuple(table[:2]), 3)
    assert found.statistics is not None
    assert found.statistics.num_tokens == 8
    bare = Cache()
    bare.fill(PROMPT)
    assert bare.find(PROMPT, with_statistics=True) == CachedPrefix((), 3, None)


def test_equal_content_is_kept_once_and_counts_as_used() -> None:
    cache = Cache(num_blocks=4)
    [first] = cache.fill([1] * 4)
    cache.fill([2] * 4)
    cache.fill([1] * 4)
    assert cache.find([1] * 4).blocks == (first,)
    assert cache.allocator.num_kept == 2
    cache.prefixes.allocate(3)
    assert cache.find([1] * 4).blocks == (first,), "the other one was used less recently"
    assert cache.find([2] * 4).blocks == ()


def test_an_evicted_block_is_not_found_and_takes_its_snapshot_with_it() -> None:
    cache = Cache(num_blocks=3)
    table = cache.fill(PROMPT, snapshots=(1, 3))
    cache.prefixes.allocate(1)
    assert cache.find(PROMPT).blocks == tuple(table[:2])
    assert cache.prefixes.num_snapshots == 1
    cache.prefixes.allocate(2)
    assert cache.prefixes.num_snapshots == 0


def test_the_beginning_recomputed_makes_the_rest_findable_again() -> None:
    cache = Cache(num_blocks=4)
    keys = block_keys(PROMPT[:8], 4)
    table = cache.fill(PROMPT[:8])
    cache.allocator.touch(table[1])
    cache.prefixes.allocate(2)
    [again] = cache.prefixes.allocate(1)
    assert again == table[0]
    assert cache.find(PROMPT).num_matched == 0
    cache.prefixes.insert(keys[0], again)
    assert cache.find(PROMPT).blocks == (again, table[1])


def test_snapshots_share_a_budget_and_the_least_recently_used_goes() -> None:
    cache = Cache(statistics_bytes=2 * SNAPSHOT_BYTES + 1)
    for token in (1, 2):
        cache.fill([token] * 4, snapshots=(1,))
    cache.find([1] * 4, with_statistics=True)
    cache.fill([3] * 4, snapshots=(1,))
    found = [bool(cache.find([token] * 4, with_statistics=True).blocks) for token in (1, 2, 3)]
    assert found == [True, False, True]
    assert cache.prefixes.num_snapshots == 2
    assert cache.find([2] * 4).num_matched == 1, "dense requests need none"


def test_the_same_snapshot_twice_takes_its_bytes_once() -> None:
    cache = Cache()
    for _ in range(2):
        cache.fill(PROMPT, snapshots=(3,))
    assert cache.prefixes.num_snapshots == 1


def test_a_snapshot_that_cannot_be_used_is_not_taken() -> None:
    tight = Cache(statistics_bytes=SNAPSHOT_BYTES - 1)
    tight.fill(PROMPT, snapshots=(3,))
    assert tight.prefixes.num_snapshots == 0
    unknown = Cache()
    unknown.prefixes.insert_snapshot(block_keys(PROMPT, 4)[0], snapshot())
    assert unknown.prefixes.num_snapshots == 0


@pytest.mark.parametrize(
    ("reused", "matched", "num_blocks", "depths"),
    [
        (0, 0, 0, ()),
        (0, 0, 5, (5,)),
        (0, 3, 5, (3, 5)),
        (2, 3, 5, (3, 5)),
        (3, 3, 5, (5,)),
        (5, 5, 5, ()),
        (0, 0, 40, (16, 32, 40)),
        (20, 33, 40, (32, 33, 40)),
    ],
)
def test_snapshots_are_wanted_where_others_may_continue(
    reused: int, matched: int, num_blocks: int, depths: tuple[int, ...]
) -> None:
    prefix = CachedPrefix(tuple(range(reused)), matched)
    assert Cache().prefixes.snapshot_depths(prefix, num_blocks) == depths
    assert Cache(statistics_bytes=0).prefixes.snapshot_depths(prefix, num_blocks) == ()
