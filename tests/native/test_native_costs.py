"""What native steps are said to have executed: the union of the rows' plans, beside what each plan alone would take.

`planned` is checked against a runner that really runs every row in a step of its own.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.api import StepCost
from glass_core.checkpoint.prepared import open_prepared
from glass_core.runners.base import StepRow
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.costs import share_of
from glass_core.runners.native.ffn_work import FfnWork, LayerReads, dense_work, layer_bytes, plan_work
from glass_core.runners.native.image import ImageHeader
from tests.native.harness import FORMATS, NativeHarness
from tests.parity.harness import greedy, make_plan, make_row
from tests.parity.variants import random_tokens
from tests.tiny_models import save_tiny_model

pytest.importorskip("glass_core.runners.native._native")

TOKENS = random_tokens(9)
MANY, FEW, ONE = (30, 88, 7), (5, 40, 31), (1, 1, 1)


@pytest.fixture(scope="module", params=FORMATS)
def header(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageHeader:
    folder = save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")
    return make_image(open_prepared(folder), request.param)


def mixed_rows(native: NativeHarness, *, dense: bool) -> list[StepRow]:
    """Decode rows of two plans, an answer recomputed after a preemption, and perhaps a chunk of a dense prompt."""
    plans = [make_plan(native.spec, budgets, seed=seed) for seed, budgets in enumerate((MANY, FEW, ONE))]
    rows = [
        make_row(TOKENS[:1], slot=0, start=9, plan=plans[0], sample=greedy()),
        make_row(TOKENS[:6], slot=1, start=3, plan=plans[1], sample=greedy()),
        make_row(TOKENS[:1], slot=2, start=4, plan=plans[2]),
    ]
    return [*rows, make_row(TOKENS, slot=3)] if dense else rows


def step_costs(native: NativeHarness, rows: list[StepRow]) -> list[StepCost]:
    return [result.cost for result in native.step(*rows)[1].rows]


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "with a dense row"])
def test_planned_is_what_a_step_of_its_own_executes(header: ImageHeader, dense: bool) -> None:
    native, alone = NativeHarness(header), NativeHarness(header)
    rows = mixed_rows(native, dense=dense)
    for index, (row, cost) in enumerate(zip(rows, step_costs(native, rows), strict=True)):
        (own,) = step_costs(alone, [row])
        assert cost.ffn_flops_planned == own.ffn_flops_computed == own.ffn_flops_planned
        assert cost.flops_planned == own.flops_computed
        assert cost.ffn_bytes_planned == share_of(own.ffn_bytes_computed, index, len(rows))
        assert own.ffn_bytes_planned == own.ffn_bytes_computed
        if row.plan is None:
            assert cost.flops_planned == cost.flops_computed == cost.flops_dense
            assert cost.ffn_bytes_planned == cost.ffn_bytes_computed == cost.ffn_bytes_dense


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "with a dense row"])
def test_a_mixed_step_executes_the_union_and_never_less_than_planned(header: ImageHeader, dense: bool) -> None:
    native = NativeHarness(header)
    rows = mixed_rows(native, dense=dense)
    costs = step_costs(native, rows)
    everything = np.arange(native.spec.intermediate_size)
    kept = [[everything] * 3 if row.plan is None else row.plan.neurons for row in rows]
    union = [np.unique(np.concatenate(layer)).astype(np.int32) for layer in zip(*kept, strict=True)]
    num_tokens = sum(len(row.token_ids) for row in rows)
    total = sum(costs, StepCost())
    assert total.ffn_flops_computed == 2 * 3 * 48 * num_tokens * sum(map(len, union))
    assert total.ffn_bytes_computed == sum(layer_bytes(header, layer, n) for layer, n in enumerate(union))
    assert total.ffn_bytes_dense == dense_work(header).num_bytes
    assert total.flops_planned < total.flops_computed <= total.flops_dense
    for cost in costs:
        assert cost.ffn_flops_planned <= cost.ffn_flops_computed <= cost.ffn_flops_dense
        assert cost.ffn_bytes_planned <= cost.ffn_bytes_computed <= cost.ffn_bytes_dense


def test_a_plan_of_everything_is_dense_work(header: ImageHeader) -> None:
    size = header.spec.intermediate_size
    assert registered_work(header, (size,) * 3) == dense_work(header)
    assert registered_work(header, (0, 0, 0)) == FfnWork(0, 0)


@pytest.mark.parametrize("budgets", [MANY, FEW, ONE])
def test_work_of_a_plan_is_counted_neuron_by_neuron(header: ImageHeader, budgets: tuple[int, ...]) -> None:
    neurons = make_plan(header.spec, budgets).neurons
    num_bytes = sum(layer_bytes(header, layer, kept) for layer, kept in enumerate(neurons))
    assert registered_work(header, budgets) == FfnWork(3 * header.spec.hidden_size * sum(budgets), num_bytes)


def registered_work(header: ImageHeader, budgets: tuple[int, ...]) -> FfnWork:
    """Of a plan with these budgets, as the extension counts its groups."""
    plan = make_plan(header.spec, budgets)
    num_groups = NativeHarness(header).runner._open().add_plan(0, plan.neurons, None)
    return plan_work(LayerReads.of(header), plan, num_groups)


@given(st.integers(0, 1 << 40), st.integers(0, 9), st.integers(1, 9))
def test_shares_sum_up_and_grow_with_the_total(total: int, more: int, parts: int) -> None:
    shares = [share_of(total, index, parts) for index in range(parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    totals = [total, total + more, total + more + 1]
    for smaller, larger in pairwise(totals):
        assert all(share_of(smaller, index, parts) <= share_of(larger, index, parts) for index in range(parts))


def test_the_same_plan_for_all_executes_as_planned(header: ImageHeader) -> None:
    native = NativeHarness(header)
    plan = make_plan(native.spec, FEW)
    rows = [make_row(TOKENS[:1], slot=slot, start=2, plan=plan) for slot in range(3)]
    for cost in step_costs(native, rows):
        assert cost.flops_planned == cost.flops_computed < cost.flops_dense
        assert cost.ffn_bytes_planned == cost.ffn_bytes_computed < cost.ffn_bytes_dense
