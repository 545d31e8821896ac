"""Walking the union of the plans and computing all neurons give every row the same bits; the counts say which ran."""

from pathlib import Path

import numpy as np
import pytest

from glass_core.runners.base import StepRow
from glass_core.runners.native.types import FfnPath
from tests.native.harness import FORMATS, NativeHarness, make_header
from tests.parity.harness import greedy, make_plan, make_row
from tests.parity.variants import Variant, random_tokens

ISAS = pytest.importorskip("glass_core.runners.native._native").kernels.available_isas()
ODD_SIZES = Variant("qwen3-odd-sizes", "qwen3", {"hidden_size": 104, "intermediate_size": 200})
MLP_BIAS = Variant("llama-mlp-bias", "llama", {"mlp_bias": True, "num_key_value_heads": 1})
PROMPT = random_tokens(9, seed=1)


def force(native: NativeHarness, path: FfnPath) -> None:
    native.runner._open().force_ffn_path(path)


def rows_of_plans(native: NativeHarness, budgets: list[tuple[int, ...]], seed: int) -> tuple[StepRow, ...]:
    """One decode row per plan, each behind a prompt of its own."""
    rows = []
    for slot, budget in enumerate(budgets):
        native.feed([PROMPT], slot=slot)
        plan = make_plan(native.spec, budget, seed=seed + slot)
        rows.append(make_row([7 + slot], slot=slot, start=len(PROMPT), plan=plan, sample=greedy()))
    return tuple(rows)


def fuzzed_budgets(native: NativeHarness, seed: int) -> list[tuple[int, ...]]:
    """One to four plans of any size, of one neuron and of all, of none in a layer: most groups of one are empty."""
    generator = np.random.default_rng(seed)
    m, layers = native.spec.intermediate_size, native.spec.num_layers
    sizes = (0, 1, 2, m // 20, m // 4, m // 2, 3 * m // 4, m - 1, m)
    return [tuple(int(size) for size in generator.choice(sizes, layers)) for _ in range(generator.integers(1, 5))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("variant", [ODD_SIZES, MLP_BIAS], ids=lambda variant: variant.name)
def test_both_paths_give_the_same_bits(variant: Variant, image_format: str, isa: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(variant, tmp_path, image_format), isa=isa)
    for seed in range(8):
        rows = rows_of_plans(native, fuzzed_budgets(native, seed), 10 * seed)
        force(native, "union_list")
        listed = native.step(*rows)[0].copy()
        force(native, "all_neurons")
        np.testing.assert_array_equal(native.step(*rows)[0], listed, err_msg=f"seed {seed}")


def test_the_executed_work_is_counted(tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, "int4"))
    rows = rows_of_plans(native, [(1, 50, 0), (1, 200, 0)], seed=0)
    force(native, "union_list")
    listed = native.step(*rows)[1].rows[0].cost
    force(native, "all_neurons")
    whole = native.step(*rows)[1].rows[0].cost
    assert whole.ffn_flops_computed == whole.ffn_flops_dense == listed.ffn_flops_dense
    assert whole.ffn_bytes_computed == whole.ffn_bytes_dense
    per_neuron = listed.ffn_flops_dense // (3 * 200)
    assert listed.ffn_flops_computed in (201 * per_neuron, 202 * per_neuron)


def computed_neurons(native: NativeHarness, rows: tuple[StepRow, ...]) -> int:
    cost = native.step(*rows)[1].rows[0].cost
    return cost.ffn_flops_computed * native.spec.num_layers * native.spec.intermediate_size // cost.ffn_flops_dense


def test_the_break_even_decides_per_layer_and_number_of_rows(tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, "int4"))
    model = native.runner._open()
    one = rows_of_plans(native, [(100, 101, 99)], seed=0)
    assert computed_neurons(native, one) == 300
    model.set_ffn_break_even([(1, 0.5), (3, 1.0)])
    assert computed_neurons(native, one) == 100 + 200 + 99
    # with two rows the break-even lies at 0.75
    assert computed_neurons(native, rows_of_plans(native, [(150, 151, 1), (0, 0, 0)], seed=0)) == 150 + 200 + 1
    three = rows_of_plans(native, [(199, 200, 1), (0, 0, 0), (0, 0, 0)], seed=0)
    assert computed_neurons(native, three) == 199 + 200 + 1
    model.set_ffn_break_even([])
    assert computed_neurons(native, one) == 300


@pytest.mark.parametrize("points", [[(0, 0.5)], [(2, 0.5), (2, 0.6)], [(1, 0.0)], [(1, 1.5)], [(1, float("nan"))]])
def test_points_that_cannot_be_are_refused(points: list[tuple[int, float]], tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, "int4"))
    with pytest.raises(ValueError, match="break-even points"):
        native.runner._open().set_ffn_break_even(points)


def test_an_unknown_path_is_refused(tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, "int4"))
    with pytest.raises(ValueError, match="must be cheapest, union_list or all_neurons, got 'fast'"):
        native.runner._open().force_ffn_path("fast")  # type: ignore[arg-type]
