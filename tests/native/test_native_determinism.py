"""A token's logits depend on its own sequence and plan only, to the last bit: not on chunks, batches or preemption."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_core.runners.base import StepRow
from tests.native.harness import FORMATS, NativeHarness, make_header
from tests.parity.harness import greedy, make_plan, make_row, singles, split
from tests.parity.variants import Variant, random_tokens

ISAS = pytest.importorskip("glass_core.runners.native._native").kernels.available_isas()
VARIANTS = (
    Variant("mistral-window", "mistral", {"sliding_window": 7}),
    Variant("qwen3-odd-sizes", "qwen3", {"hidden_size": 104, "intermediate_size": 200}),
    Variant("llama-mlp-bias", "llama", {"mlp_bias": True, "num_key_value_heads": 1}),
)
PROMPT = random_tokens(43, seed=1)
ANSWER = random_tokens(8, seed=2)


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    value: Variant = request.param
    return value


@pytest.fixture(params=FORMATS)
def image_format(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.mark.parametrize("isa", ISAS)
def test_chunks_equal_the_whole(variant: Variant, image_format: str, isa: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(variant, tmp_path, image_format), isa=isa)
    every = native.feed(singles(PROMPT), slot=0)
    whole = native.feed([PROMPT], slot=1)
    np.testing.assert_array_equal(every[-1:], whole)
    sizes = (17, 1, 16, 5)
    ends = np.cumsum([*sizes, len(PROMPT) - sum(sizes)]) - 1
    np.testing.assert_array_equal(native.feed(split(PROMPT, *sizes), slot=2), every[ends])


def mixed_rows(native: NativeHarness) -> tuple[StepRow, ...]:
    """Sparse and dense, decode and prefill, three different plans, one of them empty in a layer, one of all neurons."""
    m, layers = native.spec.intermediate_size, native.spec.num_layers
    budgets = [(m // 2, m, 3), (5, 0, m // 3), (m,) * layers]
    plans = [make_plan(native.spec, budget, seed=seed) for seed, budget in enumerate(budgets)]
    for slot, length in enumerate((9, 4, 0, 13, 6)):
        if length:
            native.feed([PROMPT[:length]], slot=slot)
    return (
        make_row(ANSWER[:1], slot=0, start=9, plan=plans[0], sample=greedy()),
        make_row(ANSWER[:5], slot=1, start=4, collect_statistics=True, sample=greedy()),
        make_row(PROMPT[:30], slot=2, collect_statistics=True, sample=greedy()),
        make_row(ANSWER[:4], slot=3, start=13, plan=plans[1], sample=greedy()),
        make_row(ANSWER[:1], slot=4, start=6, plan=plans[2], sample=greedy()),
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kept", [(0, 1, 2, 3, 4), (0, 3), (3, 4), (1, 2)], ids=str)
def test_a_batch_equals_its_rows(
    variant: Variant, image_format: str, isa: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    native = NativeHarness(make_header(variant, tmp_path, image_format), isa=isa)
    rows = tuple(row for index, row in enumerate(mixed_rows(native)) if index in kept)
    together, result = native.step(*rows)
    for row, logits, row_result in zip(rows, together, result.rows, strict=True):
        alone, alone_result = native.step(row)
        np.testing.assert_array_equal(logits, alone[0])
        (expected,) = alone_result.rows
        assert row_result.token_id == expected.token_id
        if row_result.statistics is not None and expected.statistics is not None:
            np.testing.assert_array_equal(row_result.statistics.sum_abs, expected.statistics.sum_abs)


def test_a_plan_of_all_neurons_equals_dense(variant: Variant, image_format: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(variant, tmp_path, image_format))
    plan = make_plan(native.spec, (native.spec.intermediate_size,) * native.spec.num_layers)
    dense = native.feed([PROMPT, ANSWER])
    np.testing.assert_array_equal(native.feed([PROMPT, ANSWER], slot=1, plan=plan), dense)


def test_a_recomputed_answer_equals_an_uninterrupted_one(variant: Variant, image_format: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(variant, tmp_path, image_format))
    plan = make_plan(native.spec, (30, native.spec.intermediate_size, 7))
    native.feed([PROMPT])
    uninterrupted = native.feed(singles(ANSWER), start=len(PROMPT), plan=plan)
    native.runner.release("sequence-0")
    native.feed(split(PROMPT, 8), slot=3, sequence_id="sequence-0")
    row: dict[str, Any] = {"slot": 3, "sequence_id": "sequence-0", "plan": plan}
    recomputed = native.feed([ANSWER[:6], *singles(ANSWER[6:])], start=len(PROMPT), **row)
    np.testing.assert_array_equal(recomputed, uninterrupted[5:])


def test_bits_are_those_of_a_number_of_threads(variant: Variant, image_format: str, tmp_path: Path) -> None:
    """Another number of threads has other partial sums of the FFN, which agree to rounding."""
    header = make_header(variant, tmp_path, image_format)
    answers = [NativeHarness(header, num_threads=threads).feed([PROMPT, *singles(ANSWER)]) for threads in (2, 2, 3)]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[2], answers[0], rtol=0, atol=0.2)
