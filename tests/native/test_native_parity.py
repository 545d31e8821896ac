"""The native runner against the torch runner on exactly the weights of its image: every family, feature and format.

What may differ is the rounding of keys and values to bfloat16 and of activations to 8 bits (bfloat16 for bf16 weights).
Errors are relative to the spread of the logits; leaving out a bias, a norm or a rotation costs 0.3 and more.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_core.sparsity.local_stats import LocalStatistics
from tests.native.harness import FORMATS, NativeHarness, correlation_error, make_header, save_decoded
from tests.parity.harness import Harness, make_plan, make_row, singles
from tests.parity.variants import FEW_VARIANTS, VARIANTS, Variant, random_tokens

pytest.importorskip("glass_core.runners.native._native")

PROMPT = random_tokens(41, seed=1)
ANSWER = random_tokens(9, seed=2)
BUDGETS = (30, 88, 7)
TOLERANCE = {"bf16": 0.015, "int8": 0.08, "int4": 0.08}
MLP_BIAS = Variant("llama-mlp-bias", "llama", {"mlp_bias": True})


def by_name(variant: Variant) -> str:
    return variant.name


def pair(variant: Variant, folder: Path, image_format: str) -> tuple[NativeHarness, Harness]:
    header = make_header(variant, folder / "model", image_format)
    return NativeHarness(header), Harness(save_decoded(header, folder / "model", folder / "decoded"))


@pytest.mark.parametrize("variant", VARIANTS, ids=by_name)
def test_every_feature_equals_torch(variant: Variant, tmp_path: Path) -> None:
    native, torch_runner = pair(variant, tmp_path, "bf16")
    expected = torch_runner.feed([PROMPT], num_prompt_tokens=len(PROMPT)).numpy()
    actual = native.feed(singles(PROMPT), num_prompt_tokens=len(PROMPT))
    assert correlation_error(actual, expected) < TOLERANCE["bf16"]


@pytest.mark.parametrize("image_format", ["int8", "int4"])
@pytest.mark.parametrize("variant", FEW_VARIANTS, ids=by_name)
def test_quantized_weights_equal_torch_on_the_same_weights(variant: Variant, tmp_path: Path, image_format: str) -> None:
    native, torch_runner = pair(variant, tmp_path, image_format)
    expected = torch_runner.feed([PROMPT]).numpy()
    assert correlation_error(native.feed(singles(PROMPT)), expected) < TOLERANCE[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("budgets", [BUDGETS, (0, 88, 0), (1, 1, 1)], ids=str)
def test_a_plan_equals_torch_views(budgets: tuple[int, ...], image_format: str, tmp_path: Path) -> None:
    native, torch_runner = pair(MLP_BIAS, tmp_path, image_format)
    plan = make_plan(native.spec, budgets)
    native.feed([PROMPT])
    torch_runner.feed([PROMPT])
    expected = torch_runner.feed([ANSWER], start=len(PROMPT), plan=plan).numpy()
    actual = native.feed(singles(ANSWER), start=len(PROMPT), plan=plan)
    assert correlation_error(actual, expected) < TOLERANCE[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("variant", FEW_VARIANTS, ids=by_name)
def test_statistics_equal_torch(variant: Variant, image_format: str, tmp_path: Path) -> None:
    native, torch_runner = pair(variant, tmp_path, image_format)
    row = make_row(PROMPT, collect_statistics=True, collect_gates=True)
    (actual,), (expected,) = native.step(row)[1].rows, torch_runner.step(row)[1].rows
    assert actual.statistics is not None and expected.statistics is not None
    assert actual.statistics.num_tokens == len(PROMPT)
    for name in ("sum_abs", "sum_squares", "sum_gates"):
        ours, theirs = getattr(actual.statistics, name), getattr(expected.statistics, name)
        assert correlation_error(ours, theirs) < TOLERANCE[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
def test_neuron_magnitudes_equal_torch(image_format: str, tmp_path: Path) -> None:
    native, torch_runner = pair(FEW_VARIANTS[0], tmp_path, image_format)
    expected = torch_runner.runner.neuron_magnitudes()
    np.testing.assert_allclose(native.runner.neuron_magnitudes(), expected, rtol=1e-5)


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("cuts", [(7, 20, 32), (1, 2, 40)], ids=str)
def test_statistics_continue_bit_for_bit(cuts: tuple[int, ...], gates: bool, tmp_path: Path) -> None:
    native = NativeHarness(make_header(FEW_VARIANTS[0], tmp_path, "int4"))
    collecting: dict[str, Any] = {"collect_statistics": True, "collect_gates": gates}
    whole = native.step(make_row(PROMPT, slot=0, **collecting))[1].rows[0].statistics
    assert whole is not None
    assert (whole.sum_gates is not None) == gates
    (row,) = native.step(make_row(PROMPT, slot=1, snapshot_ends=(*cuts, len(PROMPT)), **collecting))[1].rows
    assert_same(row.statistics, whole)
    assert len(row.snapshots) == 4
    prior: LocalStatistics | None = None
    for start, end, snapshot in zip((0, *cuts), (*cuts, len(PROMPT)), row.snapshots, strict=True):
        chunk = make_row(PROMPT[start:end], slot=2, start=start, prior_statistics=prior, **collecting)
        prior = native.step(chunk)[1].rows[0].statistics
        assert_same(prior, snapshot)
    assert row.snapshots[-1].sum_abs is not row.statistics.sum_abs if row.statistics else False


def test_gates_change_no_other_sum_and_are_each_rows_own(tmp_path: Path) -> None:
    """Rows that collect gates, rows that do not and rows that collect nothing, side by side."""
    native = NativeHarness(make_header(MLP_BIAS, tmp_path, "int8"))
    rows = (
        make_row(PROMPT[:9], slot=0, collect_statistics=True),
        make_row(PROMPT[:20], slot=1, collect_statistics=True, collect_gates=True),
        make_row(PROMPT[:3], slot=2),
        make_row(ANSWER, slot=3, collect_statistics=True, collect_gates=True),
    )
    for row, together in zip(rows, native.step(*rows)[1].rows, strict=True):
        alone = native.step(row)[1].rows[0].statistics
        assert (alone is not None) == row.collect_statistics
        if alone is not None:
            assert_same(together.statistics, alone)
    without = native.step(replace(rows[1], collect_gates=False))[1].rows[0].statistics
    with_gates = native.step(rows[1])[1].rows[0].statistics
    assert with_gates is not None
    assert_same(without, replace(with_gates, sum_gates=None))


def test_the_first_position_has_no_gates(tmp_path: Path) -> None:
    native = NativeHarness(make_header(FEW_VARIANTS[0], tmp_path, "bf16"))
    one = native.step(make_row(PROMPT[:1], collect_statistics=True, collect_gates=True))[1].rows[0].statistics
    assert one is not None and one.sum_gates is not None
    assert not one.sum_gates.any()
    assert one.sum_abs.any()


def assert_same(actual: LocalStatistics | None, expected: LocalStatistics) -> None:
    assert actual is not None
    assert actual.num_tokens == expected.num_tokens
    np.testing.assert_array_equal(actual.sum_abs, expected.sum_abs)
    np.testing.assert_array_equal(actual.sum_squares, expected.sum_squares)
    assert (actual.sum_gates is None) == (expected.sum_gates is None)
    if actual.sum_gates is not None and expected.sum_gates is not None:
        np.testing.assert_array_equal(actual.sum_gates, expected.sum_gates)
