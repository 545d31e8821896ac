"""Random traffic through the engine on tiny KV pools: nothing leaks, nothing starves, every answer is its own.

Prompts begin alike, so the prefix cache is at work; tokens and the bits of the statistics are compared with those of an
engine that has none.
"""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings, target
from hypothesis import strategies as st

from glass_core.api import FinishReason, GenerationRequest, SparsityParams, TokenEvent
from glass_core.config import SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.engine.failures import RowFailedError, StepFailedError
from glass_core.errors import InvalidRequestError
from glass_core.runners.base import StepRow
from tests.core.engine_builders import (
    DENSE,
    GRIFFIN,
    REFINED,
    CountingSelector,
    make_engine,
    make_request,
    serve_alone,
)
from tests.fakes_runner import FakeRunner, plan_key

RANDOM = SparsityParams(sparsity=0.3, method="random", seed=5)


class OnDemand(Exception):
    """The failure of a step that the test asked for."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """One request of the traffic: when it comes (in steps after the one before), and how it may be cut short."""

    request: GenerationRequest
    delay: int
    cut: FinishReason | None
    cut_after: int


@dataclass(slots=True)
class Outcome:
    events: list[TokenEvent] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def ends(self, request_id: str) -> int:
        finishes = sum(e.request_id == request_id and e.finish is not None for e in self.events)
        return finishes + self.failed.count(request_id)


@st.composite
def visitors(draw: st.DrawFn) -> list[Visitor]:
    result = []
    for index in range(draw(st.integers(2, 7))):
        length, num_shared = draw(st.sampled_from([1, 2, 3, 4, 8, 9, 14])), draw(st.sampled_from([0, 3, 5, 9, 14]))
        request = make_request(
            str(index),
            [((position >= num_shared) * index * 11 + position * position) % 32 for position in range(length)],
            max_tokens=draw(st.sampled_from([1, 2, 9, 13, 14])),
            seed=draw(st.integers(0, 3)),
            sparsity=draw(st.sampled_from([DENSE, GRIFFIN, RANDOM, REFINED])),
            ignore_eos=draw(st.sampled_from([True, True, False])),
        )
        cut = draw(st.sampled_from([None] * 6 + [FinishReason.ABORTED, FinishReason.STOP]))
        result.append(Visitor(request, draw(st.integers(0, 2)), cut, draw(st.integers(0, 8))))
    return result


@settings(max_examples=250, deadline=None)
@given(
    traffic=visitors(),
    num_kv_blocks=st.integers(5, 10),
    limits=st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 10))),
    view_cache_bytes=st.sampled_from([120, 1000, 1000]),
    failing_steps=st.sampled_from([set(), set(), {1}, {4}, {3, 12}]),
    prefix_statistics_bytes=st.sampled_from([None, 0, 127, 300, 10_000, 10_000]),
    poisoned=st.sets(st.integers(0, 5), max_size=2),
)
def test_random_traffic(
    traffic: list[Visitor],
    num_kv_blocks: int,
    limits: tuple[int, int],
    view_cache_bytes: int,
    failing_steps: set[int],
    prefix_statistics_bytes: int | None,
    poisoned: set[int],
) -> None:
    """`prefix_statistics_bytes` None = no prefix cache; a snapshot takes 128 bytes."""
    runner = FakeRunner(num_kv_blocks=num_kv_blocks)
    runner.poisoned = {traffic[index].request.request_id for index in poisoned if index < len(traffic)}
    runner.failures.extend(OnDemand() if step in failing_steps else None for step in range(31))
    selector = CountingSelector(runner)
    engine = make_engine(
        runner,
        selector=selector,
        scheduler=SchedulerConfig(max_num_sequences=limits[0], max_step_tokens=limits[1]),
        view_cache_bytes=view_cache_bytes,
        enable_prefix_caching=prefix_statistics_bytes is not None,
        prefix_statistics_bytes=prefix_statistics_bytes or 0,
    )
    accepted, outcome = serve(engine, traffic)
    expected_bits: set[bytes] = set()
    for visitor in accepted:
        alone, bits = serve_alone(visitor.request)
        check_answer(visitor, outcome, alone)
        expected_bits.update(bits)
    assert set(selector.bits_seen) <= expected_bits
    for batch in runner.batches:
        assert sum(len(row.token_ids) for row in batch.rows) <= limits[1]
        assert len(batch.rows) <= limits[0]
    assert len(selector.num_tokens_seen) <= sum(not v.request.sparsity.is_dense for v in accepted)
    check_plans([row for batch in runner.batches for row in batch.rows])
    stats = engine.stats()
    target(float(stats.num_preemptions), label="preemptions")
    target(float(stats.prefix_cache_hits), label="tokens from the prefix cache")
    assert stats.prefix_cache_hits <= stats.prefix_cache_queries
    assert (stats.kv_blocks_used, stats.view_bytes_used, runner.views) == (0, 0, {})
    assert (stats.num_requests_running, stats.num_requests_waiting) == (0, 0)


def serve(engine: Engine, traffic: list[Visitor]) -> tuple[list[Visitor], Outcome]:
    """Feed the traffic, step until idle; returns who was accepted and what came out."""
    accepted: list[Visitor] = []
    outcome = Outcome()
    cuts: list[tuple[int, Visitor]] = []
    arrivals = iter(traffic)
    coming = next(arrivals, None)
    last_arrival = 0
    for step in range(3000):
        while coming is not None and step >= last_arrival + coming.delay:
            if accept(engine, coming):
                accepted.append(coming)
                cuts.append((step + coming.cut_after, coming))
            last_arrival, coming = step, next(arrivals, None)
        for due, visitor in cuts:
            if due == step and visitor.cut is not None:
                engine.finish(visitor.request.request_id, visitor.cut)
        if coming is None and not engine.has_work:
            return accepted, outcome
        advance(engine, outcome)
        check_blocks(engine)
    raise AssertionError("starvation: the engine never becomes idle")


def accept(engine: Engine, visitor: Visitor) -> bool:
    try:
        engine.add(visitor.request)
    except InvalidRequestError:
        return False
    return True


def advance(engine: Engine, outcome: Outcome) -> None:
    try:
        outcome.events += engine.step()
    except StepFailedError as error:
        if not isinstance(error.__cause__, OnDemand | RowFailedError):
            raise  # the runner's own checks: a bug of the engine
        outcome.failed += error.request_ids
        outcome.events += engine.take_events()


def check_blocks(engine: Engine) -> None:
    """Every block is in one state, and referenced as often as it stands in a block table."""
    allocator = engine._allocator
    free, kept, held = set(allocator._free), set(allocator._kept), allocator._references
    assert len(allocator._free) == len(free)
    assert not (free & kept or free & set(held) or kept & set(held))
    assert len(free) + len(kept) + len(held) == allocator.num_blocks
    assert Counter(b for sequence in engine._scheduler.running for b in sequence.block_table) == held
    assert kept <= set(engine._prefixes._key_of) <= kept | set(held)
    snapshots = engine._prefixes._snapshots.values()
    assert sum(snapshot.num_bytes for snapshot in snapshots) == engine._prefixes._statistics_bytes_used
    assert engine._prefixes._statistics_bytes_used <= engine.config.cache.prefix_statistics_bytes
    assert set(engine._prefixes._snapshots) <= set(engine._prefixes._block_of)


def check_answer(visitor: Visitor, outcome: Outcome, alone: list[int]) -> None:
    """One end, nothing after it, and the tokens (or their beginning, when cut short) of the request alone."""
    request_id = visitor.request.request_id
    assert outcome.ends(request_id) == 1
    events = [event for event in outcome.events if event.request_id == request_id]
    tokens = [event.token_id for event in events if event.token_id is not None]
    assert tokens == alone[: len(tokens)]
    if request_id in outcome.failed:
        return
    finish = events[-1].finish
    assert finish is not None
    assert finish.num_generated_tokens == len(tokens)
    if len(tokens) < len(alone):
        assert finish.reason is visitor.cut


def check_plans(rows: list[StepRow]) -> None:
    """A sequence has one plan for its life, and collects no statistics once it has it."""
    plans: dict[str, set[str]] = {}
    for row in rows:
        if row.plan is not None:
            plans.setdefault(row.sequence_id, set()).add(plan_key(row.plan))
        assert not (row.collect_statistics and row.sequence_id in plans)
    assert all(len(keys) == 1 for keys in plans.values())
