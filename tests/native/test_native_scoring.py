"""Teacher forcing: a whole answer has the logits of decoding it token by token, under every plan, bit for bit."""

from pathlib import Path

import numpy as np
import pytest

from glass_core.errors import ConfigurationError, EngineFailureError
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.scoring import NativeScorer
from tests.native.harness import FORMATS, NativeHarness, make_header
from tests.parity.harness import make_plan, make_row, singles
from tests.parity.variants import Variant, random_tokens

pytest.importorskip("glass_core.runners.native._native")

VARIANTS = (
    Variant("mistral-window", "mistral", {"sliding_window": 7}),
    Variant("qwen3-odd-sizes", "qwen3", {"hidden_size": 104, "intermediate_size": 200}),
)
PROMPT = random_tokens(21, seed=1)
ANSWER = random_tokens(19, seed=2)


@pytest.fixture(params=[(variant, image_format) for variant in VARIANTS for image_format in FORMATS], ids=str)
def header(request: pytest.FixtureRequest, tmp_path: Path) -> ImageHeader:
    variant, image_format = request.param
    return make_header(variant, tmp_path, image_format)


def scorer_of(header: ImageHeader) -> NativeScorer:
    return NativeScorer(header, max_tokens=len(PROMPT) + len(ANSWER), num_threads=2)


def test_forcing_equals_decoding(header: ImageHeader) -> None:
    native = NativeHarness(header)
    spec = header.spec
    plans = [None, *(make_plan(spec, (budget, spec.intermediate_size, 7), seed=budget) for budget in (5, 40))]
    with scorer_of(header) as scorer:
        scorer.read_prompt(random_tokens(30, seed=3))  # overwritten by the next
        scorer.read_prompt(PROMPT)
        for slot, plan in enumerate(plans):
            native.feed([PROMPT], slot=slot)
            decoded = native.feed(singles(ANSWER), slot=slot, start=len(PROMPT), plan=plan)
            np.testing.assert_array_equal(scorer.force(ANSWER, plan), decoded)


def test_statistics_of_the_prompt_and_of_the_answer(header: ImageHeader) -> None:
    native = NativeHarness(header)
    _, whole = native.step(make_row(PROMPT, collect_statistics=True))
    with scorer_of(header) as scorer:
        prompt = scorer.read_prompt(PROMPT)
        logits, answer = scorer.observe(ANSWER)
        np.testing.assert_array_equal(logits, scorer.force(ANSWER, None))
    (row,) = whole.rows
    assert row.statistics is not None
    np.testing.assert_array_equal(prompt.sum_abs, row.statistics.sum_abs)
    assert (prompt.num_tokens, answer.num_tokens) == (len(PROMPT), len(ANSWER))
    # every token adds a unit vector's squares
    np.testing.assert_allclose(answer.sum_squares.sum(axis=1), len(ANSWER), rtol=1e-5)


def test_refusals(header: ImageHeader) -> None:
    with scorer_of(header) as scorer:
        scorer.read_prompt(PROMPT)
        with pytest.raises(ConfigurationError, match="room for 40 tokens, prompt and answer have 41"):
            scorer.force((*ANSWER, 1), None)
        for wanted in (-1, 3):
            with pytest.raises(EngineFailureError, match=f"row 0: the logits of {wanted} of its 2 tokens"):
                scorer.runner.score(make_row((1, 2), block_table=(0,)), wanted)
