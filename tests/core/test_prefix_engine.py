"""The prefix cache in the engine, on the FakeRunner: what is reused, what never is, and that no answer notices."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from glass_core.api import Finish, GenerationRequest, SparsityParams, TokenEvent
from glass_core.config import SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.engine.failures import StepFailedError
from glass_core.models.spec import RopeSpec
from glass_core.runners.base import StepBatch, StepResult, StepRow
from glass_core.sparsity.local_stats import LocalStatistics
from tests.core.engine_builders import (
    DENSE,
    GRIFFIN,
    REFINED,
    CountingSelector,
    make_engine,
    make_request,
    run_to_end,
    serve_alone,
    tokens_of,
)
from tests.fakes_runner import FakeRunner, fake_spec

ROOMY = SchedulerConfig(max_num_sequences=4, max_step_tokens=64)
SYSTEM = [3, 1, 4, 1, 5, 9, 2, 6, 5]  # two whole blocks of four and one token


class Server:
    """An engine, and every answer compared with what the request gets alone, without a cache."""

    def __init__(self, runner: FakeRunner | None = None, **settings: Any) -> None:
        self.runner = runner or FakeRunner()
        self.selector = CountingSelector(self.runner)
        self.engine: Engine = make_engine(self.runner, scheduler=ROOMY, selector=self.selector, **settings)

    def ask(self, request: GenerationRequest) -> Finish:
        self.engine.add(request)
        return self.check(request, run_to_end(self.engine))

    def check(self, request: GenerationRequest, events: list[TokenEvent]) -> Finish:
        tokens, bits = serve_alone(request)
        assert tokens_of(events, request.request_id) == tokens
        assert set(bits) <= set(self.selector.bits_seen)
        [finish] = [e.finish for e in events if e.request_id == request.request_id and e.finish is not None]
        return finish

    def cached(self, prompt: Iterable[int], *, sparse: bool = False, seed: int = 0) -> int:
        """Tokens of this prompt that came from the cache."""
        return self.ask(make_request("r", prompt, sparsity=GRIFFIN if sparse else DENSE, seed=seed)).num_cached_tokens

    def rows(self) -> list[StepRow]:
        return [row for batch in self.runner.batches for row in batch.rows]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("length", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (11, 8)])
def test_a_repeated_prompt_computes_at_least_its_last_token(length: int, cached: int, sparse: bool) -> None:
    server = Server()
    assert server.cached(range(length), sparse=sparse) == 0
    assert server.cached(range(length), sparse=sparse, seed=1) == cached
    stats = server.engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (2 * length, cached)
    assert stats.num_prompt_tokens == 2 * length
    assert stats.kv_blocks_used == 0


def test_only_what_is_executed_costs() -> None:
    server = Server()
    first, second = (server.ask(make_request("r", range(11), max_tokens=1)).report.cost for _ in range(2))
    assert (first.flops_dense, second.flops_dense) == (1100, 300)


def test_the_next_turn_of_a_conversation_continues_where_the_prompt_ended() -> None:
    server = Server()
    prompt = list(range(10))
    assert server.cached(prompt, sparse=True) == 0
    # the generated tokens of the first turn were computed under a plan, and are computed again
    answer = serve_alone(make_request("r", prompt, sparsity=GRIFFIN))[0]
    assert server.cached([*prompt, *answer, 20, 21], sparse=True) == 8


@pytest.mark.parametrize("sparsity", [DENSE, GRIFFIN], ids=["dense", "sparse"])
def test_prompts_are_shared_within_a_salt_only(sparsity: SparsityParams) -> None:
    """`ask` compares answer and statistics with those of an engine that has no cache."""
    server = Server()
    request = make_request("r", range(11), sparsity=sparsity)
    salts = [None, "a", "b", "", "a", None, "b", "", "a|"]
    cached = [server.ask(replace(request, cache_salt=salt)).num_cached_tokens for salt in salts]
    assert cached == [0, 0, 0, 0, 8, 8, 8, 8, 0]
    assert len(set(server.selector.plans)) == (0 if sparsity.is_dense else 1)


def test_a_prompt_of_another_salt_is_not_waited_for() -> None:
    server = Server()
    requests = [
        replace(make_request(name, range(18)), cache_salt=salt) for name, salt in zip("abc", "xyx", strict=True)
    ]
    for request in requests:
        server.engine.add(request)
    events = server.engine.step()
    assert server.engine.stats().num_requests_running == 2, "the third waits for the first one's blocks"
    events += run_to_end(server.engine)
    assert [server.check(request, events).num_cached_tokens for request in requests] == [0, 0, 16]


def test_generated_tokens_are_never_found() -> None:
    server = Server()
    for sparsity in (DENSE, GRIFFIN):
        request = make_request("r", [1, 2], max_tokens=11, sparsity=sparsity)
        server.ask(request)
        continued = [1, 2, *serve_alone(request)[0], 5]
        assert server.cached(continued) == 0


def test_a_system_prompt_is_reused_whole_from_its_third_sparse_request_on() -> None:
    server = Server()
    cached = [server.cached([*SYSTEM, *[10 + user] * 7], sparse=True) for user in range(4)]
    assert cached == [0, 0, 8, 8]


def test_dense_requests_reuse_at_once_and_sparse_ones_after_the_first() -> None:
    server = Server()
    assert [server.cached([*SYSTEM, 10 + user]) for user in range(2)] == [0, 8]
    assert [server.cached([*SYSTEM, 20 + user], sparse=True) for user in range(2)] == [0, 8]
    assert server.cached([*SYSTEM, 30]) == 8


def test_sparse_requests_fill_the_cache_for_dense_ones() -> None:
    server = Server()
    assert server.cached([*SYSTEM, 10, 11, 12], sparse=True) == 0
    assert server.cached([*SYSTEM, 10, 11, 12, 13]) == 12


def test_refined_requests_need_no_statistics() -> None:
    """`ask` compares answer and statistics with those of an engine that has no cache."""
    server = Server()
    order = (REFINED, REFINED, GRIFFIN, GRIFFIN)
    found = [server.ask(make_request("r", range(11), sparsity=sparsity)).num_cached_tokens for sparsity in order]
    assert found == [0, 8, 0, 8]
    collected = [row.collect_statistics for row in server.rows() if row.plan is None]
    assert collected == [False, False, True, True]


def test_without_room_for_statistics_only_dense_requests_hit() -> None:
    server = Server(prefix_statistics_bytes=0)
    assert [server.cached(SYSTEM, sparse=True) for _ in range(3)] == [0, 0, 0]
    assert server.cached(SYSTEM) == 8


def test_switched_off_nothing_is_looked_up_or_kept() -> None:
    server = Server(enable_prefix_caching=False)
    assert [server.cached(SYSTEM, sparse=sparse) for sparse in (False, False, True, True)] == [0] * 4
    stats = server.engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (0, 0)
    assert not any(row.snapshot_ends for row in server.rows())


def test_running_requests_share_blocks() -> None:
    runner = FakeRunner(num_kv_blocks=8)
    server = Server(runner)
    requests = [make_request(name, [*SYSTEM, i], max_tokens=5, seed=i) for i, name in enumerate("abc")]
    server.engine.add(requests[0])
    events = server.engine.step()
    for request in requests[1:]:
        server.engine.add(request)
    events += server.engine.step()
    # three blocks each, two of them shared by all
    assert server.engine.stats().kv_blocks_used == 5
    events += run_to_end(server.engine)
    assert [server.check(request, events).num_cached_tokens for request in requests] == [0, 8, 8]
    assert server.engine.stats().kv_blocks_used == 0


@pytest.mark.parametrize(("num_kv_blocks", "running"), [(6, 1), (7, 2)])
def test_shared_blocks_count_once_in_admission(num_kv_blocks: int, running: int) -> None:
    """Each takes five blocks, of which four are shared; one more is spared for the first one's next token."""
    server = Server(FakeRunner(num_kv_blocks=num_kv_blocks))
    requests = [make_request(name, [*range(16), i], max_tokens=3) for i, name in enumerate("ab")]
    events: list[TokenEvent] = []
    for request in requests:
        server.engine.add(request)
        events += server.engine.step()
    assert server.engine.stats().num_requests_running == running
    events += run_to_end(server.engine)
    assert [server.check(request, events).num_cached_tokens for request in requests] == [0, 16]


def num_computed(server: Server) -> int:
    """Prompt tokens that were really run."""
    return sum(len(row.token_ids) for row in server.rows() if row.start < (row.num_prompt_tokens or 0))


@pytest.mark.parametrize("sparsity", [DENSE, GRIFFIN])
def test_equal_prompts_that_come_together_are_computed_once(sparsity: SparsityParams) -> None:
    server = Server(FakeRunner(num_kv_blocks=32))
    requests = [make_request(str(seed), range(18), seed=seed, sparsity=sparsity) for seed in range(4)]
    for request in requests:
        server.engine.add(request)
    events = run_to_end(server.engine)
    assert [server.check(request, events).num_cached_tokens for request in requests] == [0, 16, 16, 16]
    assert num_computed(server) == 18 + 3 * 2


def test_prompts_with_nothing_to_wait_for_start_together() -> None:
    server = Server(FakeRunner(num_kv_blocks=32))
    # no statistics will be there where the second leaves the first; short ones have no whole block
    for name, prompt in (("a", [*SYSTEM, 1, 1, 1, 1]), ("b", [*SYSTEM, 2]), ("c", [7, 7]), ("d", [7, 7])):
        server.engine.add(make_request(name, prompt, sparsity=GRIFFIN))
    server.engine.step()
    assert server.engine.stats().num_requests_running == 4


def test_one_that_waits_for_a_prompt_that_is_aborted_computes_it_itself() -> None:
    server = Server(FakeRunner(num_kv_blocks=32))
    engine = make_engine(server.runner, scheduler=SchedulerConfig(max_num_sequences=4, max_step_tokens=6))
    for name in ("gone", "r"):
        engine.add(make_request(name, range(18)))
    events = engine.step()
    assert engine.num_waiting == 1
    engine.abort("gone")
    events += run_to_end(engine)
    assert server.check(make_request("r", range(18)), events).num_cached_tokens == 4


def test_an_aborted_prompt_leaves_what_it_computed() -> None:
    server = Server()
    engine = make_engine(server.runner, scheduler=SchedulerConfig(max_num_sequences=1, max_step_tokens=6))
    engine.add(make_request("gone", range(20)))
    engine.step()
    engine.abort("gone")
    run_to_end(engine)
    assert engine.stats().kv_blocks_used == 0
    engine.add(make_request("r", range(20)))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert finish.num_cached_tokens == 4, "one whole block; two tokens of the second were computed"


def test_a_failed_step_leaves_nothing_behind() -> None:
    server = Server()
    server.engine.add(make_request("gone", SYSTEM))
    server.runner.failures.append(RuntimeError("half written"))
    with pytest.raises(StepFailedError):
        server.engine.step()
    assert server.cached(SYSTEM) == 0


def test_a_pool_under_pressure_forgets_the_oldest() -> None:
    server = Server(FakeRunner(num_kv_blocks=6))
    first, second = [1] * 9, [2] * 9
    assert [server.cached(prompt, sparse=True) for prompt in (first, second, second)] == [0, 0, 8]
    assert server.cached([3] * 13, sparse=True) == 0
    assert server.cached(second, sparse=True) == 8
    assert server.cached(first, sparse=True) == 0


def test_a_preempted_request_finds_its_own_prompt_again() -> None:
    server = Server(FakeRunner(num_kv_blocks=8))
    requests = [make_request(n, [i] * 12, max_tokens=12, sparsity=GRIFFIN) for i, n in enumerate("ab")]
    for request in requests:
        server.engine.add(request)
    events = run_to_end(server.engine)
    stats = server.engine.stats()
    assert stats.num_preemptions > 0
    for request in requests:
        assert server.check(request, events).num_cached_tokens == 0, "its own work is no hit"
    assert stats.prefix_cache_hits == 0
    resumed = [row for row in server.rows() if row.sequence_id == "b"]
    restarts = [later.start for row, later in pairwise(resumed) if later.start <= row.start]
    assert restarts
    assert min(restarts) > 0, "recomputation begins after what was kept of the prompt"


class ForgetfulRunner(FakeRunner):
    """Ignores what it is asked about statistics."""

    forget: str = "snapshots"

    def execute(self, batch: StepBatch) -> StepResult:
        rows = FakeRunner.execute(self, batch).rows
        if self.forget == "snapshots":
            return StepResult(tuple(replace(row, snapshots=()) for row in rows))
        sums = LocalStatistics.zeros(2, 8)
        return StepResult(tuple(replace(row, statistics=sums) for row in rows))


@pytest.mark.parametrize("forget", ["snapshots", "prior"])
def test_a_runner_without_running_sums_fails_the_step(forget: str) -> None:
    runner = ForgetfulRunner()
    runner.forget = forget
    engine = make_engine(runner)
    engine.add(make_request("r", SYSTEM, sparsity=GRIFFIN))
    with pytest.raises(StepFailedError):
        engine.step()


def dynamic(trained: int) -> FakeRunner:
    rope = RopeSpec(theta=10000.0, kind="dynamic", factor=2.0, original_max_position=trained)
    return FakeRunner(spec=replace(fake_spec(), rope=rope))


def test_dynamic_rope_shares_prefixes_of_equally_rotated_prompts_only() -> None:
    server = Server(dynamic(trained=12))
    # up to the trained length all prompts are rotated alike
    assert [server.cached(range(length)) for length in (9, 12)] == [0, 8]
    assert [server.cached(range(length)) for length in (13, 14, 14, 13)] == [0, 0, 12, 12]
