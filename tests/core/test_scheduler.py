"""The scheduler alone: order, budgets, admission, preemption. No runner, no clock."""

from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.api import FinishReason, StepCost
from glass_core.config import SchedulerConfig
from glass_core.engine.kv_blocks import BlockAllocator
from glass_core.engine.prefix_cache import PrefixCache
from glass_core.engine.scheduler import Schedule, Scheduler
from glass_core.engine.sequence import Sequence, SequenceStatus
from glass_core.runners.base import RowResult
from tests.core.engine_builders import make_request

BLOCK_SIZE = 4


def make_scheduler(*, blocks: int = 16, sequences: int = 4, tokens: int = 8, view_cache_bytes: int = 100) -> Scheduler:
    config = SchedulerConfig(max_num_sequences=sequences, max_step_tokens=tokens)
    allocator = BlockAllocator(num_blocks=blocks, block_size=BLOCK_SIZE)
    prefixes = PrefixCache(allocator, snapshot_bytes=100, statistics_bytes=1000)
    return Scheduler(config, allocator, prefixes, view_cache_bytes=view_cache_bytes)


def make_sequence(name: str, num_prompt: int, *, max_tokens: int = 4, view_bytes: int = 0) -> Sequence:
    return Sequence(make_request(name, [1] * num_prompt, max_tokens=max_tokens), view_bytes=view_bytes)


def execute(schedule: Schedule) -> None:
    """What the engine does with a schedule, without a runner: every row that reaches the end draws token 1."""
    for chunk in schedule.chunks:
        sequence = chunk.sequence
        row = sequence.row(chunk.num_tokens, BLOCK_SIZE)
        sequence.advance(chunk.num_tokens, RowResult(StepCost(), None if row.sample is None else 1))
        sequence.plan_frozen = sequence.plan_frozen or sequence.prompt_done


def shape(schedule: Schedule) -> list[tuple[str, int]]:
    return [(chunk.sequence.id, chunk.num_tokens) for chunk in schedule.chunks]


def test_a_long_prompt_is_cut_into_chunks_and_the_rest_of_the_budget_goes_to_the_next() -> None:
    scheduler = make_scheduler()
    for name, length in (("a", 11), ("b", 6)):
        scheduler.add(make_sequence(name, length))
    shapes = []
    for _ in range(3):
        schedule = scheduler.schedule()
        shapes.append(shape(schedule))
        execute(schedule)
    assert shapes == [[("a", 8)], [("a", 3), ("b", 5)], [("a", 1), ("b", 1)]]


def test_decode_rows_come_before_prefill_chunks() -> None:
    scheduler = make_scheduler(tokens=4)
    scheduler.add(make_sequence("a", 2))
    execute(scheduler.schedule())
    scheduler.add(make_sequence("b", 9))
    assert shape(scheduler.schedule()) == [("a", 1), ("b", 3)]


def test_a_step_without_budget_left_admits_nobody() -> None:
    scheduler = make_scheduler(tokens=4)
    for name in "ab":
        scheduler.add(make_sequence(name, 4))
    assert shape(scheduler.schedule()) == [("a", 4)]
    assert [sequence.id for sequence in scheduler.waiting] == ["b"]


def test_no_more_sequences_than_allowed() -> None:
    scheduler = make_scheduler(sequences=2)
    for name in "abc":
        scheduler.add(make_sequence(name, 1))
    assert shape(scheduler.schedule()) == [("a", 1), ("b", 1)]


def test_admission_waits_for_blocks_of_the_whole_prompt_and_keeps_the_order() -> None:
    scheduler = make_scheduler(blocks=4, tokens=16)
    for name, length in (("a", 8), ("big", 12), ("small", 1)):
        scheduler.add(make_sequence(name, length))
    assert shape(scheduler.schedule()) == [("a", 8)]
    assert scheduler.allocator.num_used == 2
    # "small" would fit, but nobody overtakes: "big" cannot starve
    scheduler.remove(scheduler.running[0])
    assert shape(scheduler.schedule()) == [("big", 12)]


def test_admission_leaves_a_spare_block_for_each_sequence_already_admitted() -> None:
    scheduler = make_scheduler(blocks=2)
    for name in "ab":
        scheduler.add(make_sequence(name, 4))
    assert shape(scheduler.schedule()) == [("a", 4)]


def test_admission_waits_for_view_bytes() -> None:
    scheduler = make_scheduler(view_cache_bytes=100)
    for name in "ab":
        scheduler.add(make_sequence(name, 1, view_bytes=60))
    assert shape(scheduler.schedule()) == [("a", 1)]
    assert scheduler.view_bytes_used == 60
    scheduler.remove(scheduler.running[0])
    assert shape(scheduler.schedule()) == [("b", 1)]


def test_the_youngest_is_preempted_and_waits_at_the_head() -> None:
    scheduler = make_scheduler(blocks=4)
    sequences = [make_sequence(name, 3, max_tokens=9) for name in "abc"]
    for sequence in sequences:
        scheduler.add(sequence)
    schedule = scheduler.schedule()
    while not schedule.preempted:
        execute(schedule)
        schedule = scheduler.schedule()
    # Four blocks: both hold two when the older one asks for its third.
    assert [sequence.id for sequence in schedule.preempted] == ["b"]
    assert shape(schedule) == [("a", 1)]
    assert [sequence.id for sequence in scheduler.waiting] == ["b", "c"]
    assert (sequences[1].status, sequences[1].num_computed) == (SequenceStatus.WAITING, 0)
    assert len(sequences[1].generated) == 6
    assert scheduler.num_preemptions == 1


def test_a_sequence_that_is_itself_the_youngest_steps_back() -> None:
    scheduler = make_scheduler(blocks=4)
    older, younger = make_sequence("older", 2, max_tokens=9), make_sequence("younger", 4, max_tokens=9)
    scheduler.add(older)
    scheduler.add(younger)
    schedule = scheduler.schedule()
    while not schedule.preempted:
        execute(schedule)
        schedule = scheduler.schedule()
    assert shape(schedule) == [("older", 1)]
    assert schedule.preempted == (younger,)


def test_removing_a_waiting_sequence_frees_nothing_and_forgets_it() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence("a", 3)
    scheduler.add(sequence)
    scheduler.remove(sequence)
    assert not scheduler.has_work
    assert scheduler.allocator.num_used == 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 10), st.integers(0, 100)), min_size=1, max_size=8),
    blocks=st.integers(6, 12),
    limits=st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 9))),
)
def test_everything_finishes_within_every_limit(
    lengths: list[tuple[int, int, int]], blocks: int, limits: tuple[int, int]
) -> None:
    scheduler = make_scheduler(blocks=blocks, sequences=limits[0], tokens=limits[1])
    sequences = [
        make_sequence(str(i), prompt, max_tokens=max_tokens, view_bytes=view_bytes)
        for i, (prompt, max_tokens, view_bytes) in enumerate(lengths)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    finished: list[str] = []
    for _ in range(1000):
        if not scheduler.has_work:
            break
        schedule = scheduler.schedule()
        check_step(scheduler, schedule)
        execute(schedule)
        for chunk in schedule.chunks:
            if chunk.sequence.generated and chunk.sequence.stop_reason() is FinishReason.LENGTH:
                scheduler.remove(chunk.sequence)
                finished.append(chunk.sequence.id)
    assert sorted(finished) == sorted(sequence.id for sequence in sequences)
    assert scheduler.allocator.num_used == 0


def check_step(scheduler: Scheduler, schedule: Schedule) -> None:
    assert schedule.chunks, "a step that does nothing"
    assert sum(chunk.num_tokens for chunk in schedule.chunks) <= scheduler.config.max_step_tokens
    assert len(scheduler.running) <= scheduler.config.max_num_sequences
    assert scheduler.view_bytes_used <= scheduler.view_cache_bytes
    held = [block for sequence in scheduler.running for block in sequence.block_table]
    assert len(set(held)) == len(held) == scheduler.allocator.num_used
    arrival = [int(sequence.id) for sequence in (*scheduler.running, *scheduler.waiting)]
    assert arrival == sorted(arrival), "first come, first served"
