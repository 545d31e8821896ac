"""The native runner against the torch runner on exactly the weights of its image: every family, feature and format.

What may differ is the rounding of keys and values to bfloat16 and of activations to 8 bits (bfloat16 for bf16 weights).
Errors are relative to the spread of the logits; leaving out a bias, a norm or a rotation costs 0.3 and more.
"""

from pathlib import Path

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
    row = make_row(PROMPT, collect_statistics=True)
    (actual,), (expected,) = native.step(row)[1].rows, torch_runner.step(row)[1].rows
    assert actual.statistics is not None and expected.statistics is not None
    assert actual.statistics.num_tokens == len(PROMPT)
    for name in ("sum_abs", "sum_squares"):
        ours, theirs = getattr(actual.statistics, name), getattr(expected.statistics, name)
        assert correlation_error(ours, theirs) < TOLERANCE[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
def test_neuron_magnitudes_equal_torch(image_format: str, tmp_path: Path) -> None:
    native, torch_runner = pair(FEW_VARIANTS[0], tmp_path, image_format)
    expected = torch_runner.runner.neuron_magnitudes()
    np.testing.assert_allclose(native.runner.neuron_magnitudes(), expected, rtol=1e-5)


def test_statistics_continue_bit_for_bit(tmp_path: Path) -> None:
    native = NativeHarness(make_header(FEW_VARIANTS[0], tmp_path, "int4"))
    whole = statistics_of(native, PROMPT, slot=0)
    cuts = (7, 20, 32)
    (row,) = native.step(make_row(PROMPT, slot=1, collect_statistics=True, snapshot_ends=(*cuts, len(PROMPT))))[1].rows
    assert_same(row.statistics, whole)
    assert len(row.snapshots) == 4
    prior: LocalStatistics | None = None
    for start, end, snapshot in zip((0, *cuts), (*cuts, len(PROMPT)), row.snapshots, strict=True):
        chunk = make_row(PROMPT[start:end], slot=2, start=start, collect_statistics=True, prior_statistics=prior)
        prior = native.step(chunk)[1].rows[0].statistics
        assert_same(prior, snapshot)
    assert row.snapshots[-1].sum_abs is not row.statistics.sum_abs if row.statistics else False


def statistics_of(native: NativeHarness, tokens: tuple[int, ...], slot: int) -> LocalStatistics:
    statistics = native.step(make_row(tokens, slot=slot, collect_statistics=True))[1].rows[0].statistics
    assert statistics is not None
    return statistics


def assert_same(actual: LocalStatistics | None, expected: LocalStatistics) -> None:
    assert actual is not None
    assert actual.num_tokens == expected.num_tokens
    np.testing.assert_array_equal(actual.sum_abs, expected.sum_abs)
    np.testing.assert_array_equal(actual.sum_squares, expected.sum_squares)
