"""The engine's loop on the FakeRunner: answers, plans, accounting, failures, limits."""

import logging
from dataclasses import replace

import pytest

from glass_core.api import FinishReason, SparsityParams, StepCost
from glass_core.config import SchedulerConfig
from glass_core.engine.failures import StepFailedError
from glass_core.runners.base import RowResult, StepBatch, StepResult
from tests.core.engine_builders import (
    DENSE,
    GRIFFIN,
    CountingSelector,
    answer_alone,
    make_engine,
    make_request,
    run_to_end,
    tokens_of,
)
from tests.fakes_runner import DENSE_FLOPS_PER_TOKEN, EOS, POISON, FakeRunner

BIG = SchedulerConfig(max_num_sequences=4, max_step_tokens=64)


def test_a_dense_request_generates_max_tokens_and_ends_once() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.add(make_request(max_tokens=5))
    events = run_to_end(engine)
    assert len(tokens_of(events)) == 5
    [finish] = [event.finish for event in events if event.finish]
    assert (finish.reason, finish.num_prompt_tokens, finish.num_generated_tokens) == (FinishReason.LENGTH, 3, 5)
    assert finish.report.method == "dense"
    assert (finish.report.sparsity, finish.report.lambda_, finish.report.global_overlap) == (0.0, None, None)
    assert not any(row.collect_statistics or row.plan for batch in runner.batches for row in batch.rows)


def test_a_sparse_request_selects_once_from_the_whole_prompt_and_decodes_under_the_plan() -> None:
    runner = FakeRunner()
    selector = CountingSelector(runner)
    engine = make_engine(runner, selector=selector)
    engine.add(make_request(prompt=range(11), sparsity=GRIFFIN))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert selector.num_tokens_seen == [11]
    rows = [batch.rows[0] for batch in runner.batches]
    assert [row.collect_statistics for row in rows] == [True, True, False, False, False]
    assert [row.plan is None for row in rows] == [True, True, False, False, False]
    assert (finish.report.method, finish.report.sparsity, finish.report.sparsity_requested) == ("griffin", 0.5, 0.5)
    assert finish.report.selection_seconds > 0


def test_a_prompt_in_chunks_answers_like_a_whole_one() -> None:
    request = make_request(prompt=range(20), max_tokens=8, sparsity=GRIFFIN)
    engine = make_engine(FakeRunner(), scheduler=SchedulerConfig(max_num_sequences=2, max_step_tokens=3))
    engine.add(request)
    assert tokens_of(run_to_end(engine)) == answer_alone(request)


def test_preemption_keeps_the_plan_and_the_answer() -> None:
    runner = FakeRunner(num_kv_blocks=5)
    selector = CountingSelector(runner)
    engine = make_engine(runner, selector=selector)
    requests = [make_request(name, [5, i, 2], max_tokens=12, sparsity=GRIFFIN) for i, name in enumerate("abc")]
    for request in requests:
        engine.add(request)
    events = run_to_end(engine)
    stats = engine.stats()
    assert stats.num_preemptions > 0
    for request in requests:
        assert tokens_of(events, request.request_id) == answer_alone(request)
    assert selector.num_tokens_seen == [3, 3, 3]
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (9, 36)
    recomputed = [row for b in runner.batches for row in b.rows if row.plan is not None and len(row.token_ids) > 1]
    assert recomputed, "a resumed answer runs in chunks under its plan"
    assert runner.views == {}


def test_preemption_in_the_middle_of_a_prompt_starts_its_statistics_over() -> None:
    runner = FakeRunner(num_kv_blocks=6)
    selector = CountingSelector(runner)
    engine = make_engine(runner, selector=selector, scheduler=SchedulerConfig(max_num_sequences=2, max_step_tokens=2))
    old = make_request("old", [1, 2], max_tokens=20)
    young = make_request("young", [3] * 14, max_tokens=2, sparsity=GRIFFIN)
    engine.add(old)
    events = engine.step()
    engine.add(young)
    events += run_to_end(engine)
    assert engine.stats().num_preemptions == 1
    assert selector.num_tokens_seen == [14]
    assert tokens_of(events, "young") == answer_alone(young)


def test_requests_join_and_leave_between_steps() -> None:
    engine = make_engine(FakeRunner())
    first, second = make_request("a", max_tokens=6), make_request("b", [4, 5], max_tokens=2, sparsity=GRIFFIN)
    engine.add(first)
    events = engine.step()
    engine.add(second)
    events += run_to_end(engine)
    assert [e.request_id for e in events if e.finish] == ["b", "a"]
    assert tokens_of(events, "a") == answer_alone(first)
    assert tokens_of(events, "b") == answer_alone(second)


def eos_request() -> tuple[int, int]:
    """A seed whose answer meets EOS early, and where."""
    for seed in range(200):
        answer = answer_alone(make_request(seed=seed, max_tokens=8))
        if EOS in answer[:4]:
            return seed, answer.index(EOS)
    raise AssertionError("no seed draws EOS")


def test_the_stop_token_ends_the_answer_and_is_delivered() -> None:
    seed, index = eos_request()
    engine = make_engine(FakeRunner())
    engine.add(make_request(seed=seed, max_tokens=8, ignore_eos=False))
    events = run_to_end(engine)
    finish = events[-1].finish
    assert finish is not None
    assert (finish.reason, finish.num_generated_tokens) == (FinishReason.STOP, index + 1)
    assert tokens_of(events)[-1] == EOS


def test_a_stop_token_as_the_last_allowed_token_is_a_stop() -> None:
    seed, index = eos_request()
    engine = make_engine(FakeRunner())
    engine.add(make_request(seed=seed, max_tokens=index + 1, ignore_eos=False))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert finish.reason is FinishReason.STOP


def test_min_tokens_reach_the_runner() -> None:
    seed, index = eos_request()
    engine = make_engine(FakeRunner())
    engine.add(make_request(seed=seed, max_tokens=8, ignore_eos=False, min_tokens=index + 1))
    assert len(tokens_of(run_to_end(engine))) > index + 1


def test_finish_ends_a_sequence_with_the_given_reason_and_frees_it() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.add(make_request(max_tokens=30, sparsity=GRIFFIN))
    engine.step()
    engine.step()
    engine.finish("r", FinishReason.STOP)
    engine.finish("r", FinishReason.STOP)
    engine.finish("unknown", FinishReason.STOP)
    [event] = run_to_end(engine)
    assert event.finish is not None
    assert (event.token_id, event.finish.reason, event.finish.num_generated_tokens) == (None, FinishReason.STOP, 2)
    assert (engine.stats().kv_blocks_used, runner.views) == (0, {})


def test_aborting_a_waiting_request_needs_no_step_of_the_runner() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.add(make_request(sparsity=GRIFFIN))
    engine.abort("r")
    [event] = run_to_end(engine)
    assert event.finish is not None
    assert event.finish.reason is FinishReason.ABORTED
    assert event.finish.report.method == "dense"
    assert event.finish.timings.first_scheduled is None
    assert runner.batches == []


def test_timings_are_in_order() -> None:
    engine = make_engine(FakeRunner())
    engine.add(make_request(prompt=range(20), sparsity=GRIFFIN))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    timings = finish.timings
    stamps = [timings.arrival, timings.first_scheduled, timings.prefill_finished, timings.first_token, timings.finished]
    known = [stamp for stamp in stamps if stamp is not None]
    assert known == sorted(known)
    assert len(known) == 5


def test_cost_adds_up_to_the_last_flop() -> None:
    engine = make_engine(FakeRunner(), scheduler=BIG)
    engine.add(make_request("dense", max_tokens=3))
    engine.add(make_request("sparse", max_tokens=3, sparsity=GRIFFIN))
    engine.add(make_request("gone", max_tokens=30, sparsity=GRIFFIN))
    events = [*engine.step(), *engine.step()]
    engine.abort("gone")
    events += run_to_end(engine)
    cost = {event.request_id: event.finish.report.cost for event in events if event.finish}
    full = DENSE_FLOPS_PER_TOKEN
    # three prompt tokens and two of the three generated ones run; under the plan a quarter of the FLOPs is saved
    assert cost["dense"] == StepCost(
        5 * full, 5 * full, 5 * full // 2, 5 * full // 2, 5 * full, 5 * full, 5 * full // 2, 5 * full
    )
    assert cost["sparse"].flops_saved == 2 * full // 4
    assert cost["gone"].flops_dense == 4 * full
    stats = engine.stats()
    assert stats.cost_by_method == {"dense": cost["dense"], "griffin": cost["sparse"] + cost["gone"]}
    assert stats.num_generated_tokens == len([event for event in events if event.token_id is not None])


def test_a_request_too_sparse_to_prune_runs_densely_and_says_so() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.add(make_request(sparsity=SparsityParams(sparsity=0.01, method="griffin")))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert (finish.report.method, finish.report.sparsity_requested) == ("dense", 0.01)
    assert list(engine.stats().cost_by_method) == ["dense"]


def test_view_bytes_are_reserved_while_admitted() -> None:
    runner = FakeRunner()
    engine = make_engine(runner, view_cache_bytes=100)  # one plan: 2 layers x 4 neurons x 10 bytes
    for name in "ab":
        engine.add(make_request(name, sparsity=GRIFFIN))
    engine.step()
    assert (engine.stats().view_bytes_used, engine.num_waiting) == (80, 1)
    run_to_end(engine)
    assert engine.stats().view_bytes_used == 0


def test_a_failed_step_drops_its_batch_frees_memory_and_serves_on(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    engine = make_engine(runner, scheduler=SchedulerConfig(max_num_sequences=2, max_step_tokens=8))
    for name in "abc":
        engine.add(make_request(name, sparsity=GRIFFIN))
    runner.failures.append(RuntimeError("/secret/path exploded"))
    with caplog.at_level(logging.ERROR), pytest.raises(StepFailedError) as caught:
        engine.step()
    assert caught.value.request_ids == ("a", "b")
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
    assert (engine.stats().kv_blocks_used, runner.released, engine.unfinished) == (0, ["a", "b"], ("c",))
    assert len(tokens_of(run_to_end(engine), "c")) == 4


def test_a_failed_selection_drops_only_its_own_request() -> None:
    runner = FakeRunner()
    selector = CountingSelector(runner)
    engine = make_engine(runner, selector=selector, scheduler=BIG)
    engine.add(make_request("dense"))
    engine.add(make_request("sparse", sparsity=GRIFFIN))
    selector.failures.append(ValueError("NaN"))
    with pytest.raises(StepFailedError) as caught:
        engine.step()
    assert caught.value.request_ids == ("sparse",)
    events = run_to_end(engine)
    assert len(tokens_of(events, "dense")) == 4
    assert tokens_of(events, "sparse") == []


def test_a_row_without_a_token_ends_its_own_request_only() -> None:
    runner = FakeRunner()
    engine = make_engine(runner, scheduler=BIG)
    for name in ("fine", "poisoned", "sparse"):
        engine.add(make_request(name, sparsity=GRIFFIN if name == "sparse" else DENSE))
    runner.poisoned = {"poisoned", "sparse"}
    with pytest.raises(StepFailedError) as caught:
        engine.step()
    assert caught.value.messages == {"poisoned": POISON, "sparse": POISON}
    assert runner.released == ["poisoned", "sparse"]
    assert engine.unfinished == ("fine",)
    assert len(tokens_of(run_to_end(engine), "fine")) == 4
    assert engine.stats().kv_blocks_used == 0


def test_a_row_that_fails_in_the_middle_keeps_what_it_sent_and_caches_nothing_more() -> None:
    runner = FakeRunner()
    engine = make_engine(runner, scheduler=BIG)
    for name in ("first", "second"):
        engine.add(make_request(name))
    events = engine.step()
    runner.poisoned = {"first"}
    with pytest.raises(StepFailedError):
        engine.step()
    events += engine.take_events()
    assert len(tokens_of(events, "first")) == 1
    assert len(tokens_of(events + run_to_end(engine), "second")) == 4
    # the same prompt is served again once the cause is gone
    runner.poisoned = set()
    engine.add(make_request("first"))
    assert len(tokens_of(run_to_end(engine), "first")) == 4


def test_an_error_beside_a_token_is_the_runners_bug() -> None:
    class Confused(FakeRunner):
        def execute(self, batch: StepBatch) -> StepResult:
            rows = FakeRunner.execute(self, batch).rows
            return StepResult(tuple(replace(row, error="none") for row in rows))

    engine = make_engine(Confused())
    engine.add(make_request())
    with pytest.raises(StepFailedError) as caught:
        engine.step()
    assert isinstance(caught.value.__cause__, RuntimeError)


class ForgetfulRunner(FakeRunner):
    """Leaves out a part of every result."""

    forget: str = "token_id"

    def execute(self, batch: StepBatch) -> StepResult:
        rows = FakeRunner.execute(self, batch).rows
        return StepResult(tuple(self._without(row) for row in rows))

    def _without(self, row: RowResult) -> RowResult:
        return replace(row, token_id=None) if self.forget == "token_id" else replace(row, statistics=None)


@pytest.mark.parametrize("forget", ["token_id", "statistics"])
def test_a_runner_that_forgets_a_result_fails_the_step(forget: str) -> None:
    runner = ForgetfulRunner()
    runner.forget = forget
    engine = make_engine(runner)
    engine.add(make_request(sparsity=GRIFFIN))
    with pytest.raises(StepFailedError):
        engine.step()
    assert not engine.has_work


def test_close_closes_the_runner() -> None:
    runner = FakeRunner()
    make_engine(runner).close()
    assert runner.closed


def test_dense_requests_ignore_the_lambda() -> None:
    engine = make_engine(FakeRunner())
    engine.add(make_request(sparsity=replace(DENSE, lambda_=0.3)))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert finish.report.lambda_ is None
