"""The promise of refined answers: what a token reads may vary, the mean over the answer is what was asked."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.config import SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.engine.refine_control import MAX_SCALE, ReadsController
from tests.core.engine_builders import REFINED, answer_alone, make_engine, make_request, run_to_end, tokens_of
from tests.core.sparsity_samples import property_test
from tests.fakes_runner import FakeRunner


def run(controller: ReadsController, num_tokens: int, respond: Callable[[float], float]) -> None:
    for index in range(num_tokens):
        (scale,) = controller.scales(index, index + 1)
        controller.observe(index, index + 1, respond(scale))


@property_test
@given(
    target=st.floats(0.4, 0.9),
    offset=st.floats(0.5, 2.0),
    slope=st.floats(0.1, 0.5),
    noise=st.floats(0, 0.08),
    num_tokens=st.integers(100, 400),
    seed=st.integers(0, 1000),
)
def test_the_mean_ends_within_two_percent_of_the_target(
    target: float, offset: float, slope: float, noise: float, num_tokens: int, seed: int
) -> None:
    """Thresholds off by up to a factor of 2, tokens that differ: their right scale is `offset`."""
    rng = np.random.default_rng(seed)
    controller = ReadsController(target)
    run(controller, num_tokens, lambda s: target - slope * math.log(s / offset) + noise * float(rng.uniform(-1, 1)))
    mean = controller.mean_reads
    assert mean is not None
    # an offset of 2 alone is log(2) / 100 = 0.7 % of the FFN
    assert abs(mean - target) <= 0.02 * max(target, 0.5)


@pytest.mark.parametrize(("constant", "scale"), [(1.0, MAX_SCALE), (1 / 3, 1 / MAX_SCALE)])
def test_scales_stay_within_their_limits_and_come_back(constant: float, scale: float) -> None:
    controller = ReadsController(0.6)
    run(controller, 500, lambda _: constant)
    run_from = controller.scales(500, 501)[0]
    assert run_from == pytest.approx(scale)
    controller.observe(500, 501, 1 / 3 if constant == 1.0 else 1.0)
    assert abs(math.log(controller.scales(501, 502)[0])) < abs(math.log(run_from))


def test_tokens_that_are_repeated_keep_their_scales_and_are_not_counted_again() -> None:
    controller, other = ReadsController(0.5), ReadsController(0.5)
    reads = [0.7, 0.4, 0.55, 0.62]
    for each in (controller, other):
        for index in range(3):
            each.observe(index, index + 1, reads[index])
    scales = other.scales(0, 4)
    assert len(set(scales)) == 4
    other.observe(3, 4, reads[3])
    # after preemption
    assert controller.scales(0, 2) == scales[:2]
    controller.observe(0, 2, sum(reads[:2]) / 2)
    controller.observe(2, 3, reads[2])
    assert controller.scales(3, 4) == scales[3:]
    controller.observe(3, 4, reads[3])
    assert controller.mean_reads == other.mean_reads
    assert controller.scales(4, 5) == other.scales(4, 5)


@pytest.mark.parametrize(("start", "end"), [(1, 2), (0, 2)])
def test_new_tokens_come_one_by_one(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="token 0 is next, alone"):
        ReadsController(0.5).observe(start, end, 0.5)


def test_before_the_first_token_nothing_is_known() -> None:
    controller = ReadsController(0.5)
    assert controller.mean_reads is None
    assert controller.scales(0, 2) == (1.0, 1.0)


def test_an_answer_reads_what_was_asked_and_says_so() -> None:
    runner = FakeRunner(num_kv_blocks=64)
    engine = make_engine(runner)
    engine.add(make_request(max_tokens=50, sparsity=REFINED))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert finish.report.refine
    assert finish.report.sparsity_requested == 0.5
    assert finish.report.sparsity == pytest.approx(0.5, abs=0.02)
    assert finish.report.sparsity != 0.5
    assert finish.report.lambda_ is None
    scales = [row.refine_scales for batch in runner.batches for row in batch.rows if row.plan is not None]
    assert len(set(scales)) > 10
    assert not any(row.collect_statistics for batch in runner.batches for row in batch.rows)


def test_an_answer_of_one_token_reports_the_promise() -> None:
    engine = make_engine(FakeRunner())
    engine.add(make_request(max_tokens=1, sparsity=REFINED))
    finish = run_to_end(engine)[-1].finish
    assert finish is not None
    assert finish.report.sparsity == 0.5


def preempting_engine(runner: FakeRunner) -> Engine:
    limits = SchedulerConfig(max_num_sequences=2, max_step_tokens=5)
    return make_engine(runner, scheduler=limits, enable_prefix_caching=False)


def test_preemption_gives_tokens_the_scales_they_had() -> None:
    """The runner's keys and values depend on the scales: other ones would change the answer."""
    runner = FakeRunner(num_kv_blocks=9)
    engine = preempting_engine(runner)
    requests = [
        make_request(name, range(5 + index), max_tokens=18, sparsity=REFINED) for index, name in enumerate("ab")
    ]
    for request in requests:
        engine.add(request)
    events = run_to_end(engine)
    assert engine.stats().num_preemptions > 0
    scales: dict[tuple[str, int], set[float]] = {}
    repeated = 0
    for row in (row for batch in runner.batches for row in batch.rows if row.plan is not None):
        for position, scale in enumerate(row.refine_scales, row.start):
            known = scales.setdefault((row.sequence_id, position), set())
            repeated += bool(known)
            known.add(scale)
    assert repeated > 3
    assert all(len(values) == 1 for values in scales.values())
    for request in requests:
        assert tokens_of(events, request.request_id) == answer_alone(request)
