"""The native sampler against the reference one: the same token, bit for bit, for every combination of settings."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.api import SamplingParams, TokenLogprobs
from glass_core.errors import EngineFailureError
from glass_core.runners.base import SampleInput
from glass_core.runners.native.extension import load_extension
from glass_core.runners.native.sample_requests import DRAW_PROBLEMS, SampleRequests
from glass_core.runners.native.types import Drawn
from glass_core.runners.sampling import candidate_distribution, sample_token, token_logprobs

pytest.importorskip("glass_core.runners.native._native")

Logits = npt.NDArray[np.float32]


def native_draw(logits: Logits, *samples: SampleInput) -> list[Drawn]:
    """One draw per sample, all from the same logits."""
    requests = SampleRequests(len(logits))
    rows = np.ascontiguousarray(np.broadcast_to(logits, (len(samples), len(logits))))
    return load_extension().draw(rows, [requests.request(str(index), sample) for index, sample in enumerate(samples)])


def make_sample(prompt: Sequence[int] = (), generated: Sequence[int] = (), **params: Any) -> SampleInput:
    return SampleInput(SamplingParams(max_tokens=16, **{"seed": 0, **params}), tuple(prompt), tuple(generated))


def assert_equal(logits: Logits, sample: SampleInput) -> None:
    """Token, or problem, and log-probabilities are the reference's own."""
    ((token, problem, logprobs),) = native_draw(logits, sample)
    try:
        expected = sample_token(logits, sample)
    except EngineFailureError as error:
        assert DRAW_PROBLEMS[problem] == str(error)
        return
    assert (token, DRAW_PROBLEMS[problem]) == (expected, "")
    num_logprobs = sample.params.num_logprobs
    if num_logprobs is None:
        assert logprobs is None
    else:
        assert logprobs is not None
        found = TokenLogprobs(logprobs[0], tuple(logprobs[1]))
        assert found == token_logprobs(logits, token, num_logprobs)


# few distinct values: ties everywhere
tied = st.sampled_from([-7.0, -1.0, -0.5, 0.0, 0.25, 3.0])
spread = st.floats(-60, 60, width=32)
extreme = st.floats(allow_nan=False, allow_infinity=False, width=32)
logit_lists = st.one_of(*(st.lists(kind, min_size=1, max_size=200) for kind in (tied, spread, extreme)))
token_ids = st.integers(-1, 210)
penalties = st.sampled_from([0.0, 0.0, -2.0, 0.3, 1.7])
options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 5e-324, 1e-30, 0.05, 0.7, 1.0, 2.0, 1e6, 1e300]),
        "top_k": st.one_of(st.just(0), st.integers(1, 220)),
        "top_p": st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 0.5, 1.3, 10.0]),
        "presence_penalty": penalties,
        "frequency_penalty": penalties,
        "min_tokens": st.integers(0, 3),
        "stop_token_ids": st.lists(token_ids, max_size=3).map(tuple),
        "logit_bias": st.dictionaries(token_ids, st.floats(-100, 100), max_size=3).map(lambda d: tuple(d.items())),
        "seed": st.integers(-(2**63), 2**128),
        "num_logprobs": st.one_of(st.none(), st.integers(0, 20)),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    values=logit_lists,
    params=options,
    prompt=st.lists(token_ids, max_size=5),
    generated=st.lists(token_ids, max_size=8),
)
def test_every_draw_is_the_references(
    values: list[float], params: dict[str, Any], prompt: list[int], generated: list[int]
) -> None:
    with np.errstate(over="ignore"):
        assert_equal(np.asarray(values, np.float32), make_sample(prompt, generated, **params))


FILTERS = list(product([0, 1, 40, 999, 2900], [1.0, 0.95, 0.3, 1e-9], [0.0, 0.05]))


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 3.0, 100.0])
def test_draws_from_a_whole_vocabulary_are_the_references(temperature: float) -> None:
    """Not a multiple of the block size, logits as models have them, rounded so that many tie."""
    logits = np.round(np.random.default_rng(1).gumbel(0, 2.5, 3001), 2).astype(np.float32)
    for index, (top_k, top_p, min_p) in enumerate(FILTERS):
        params = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        for generated in ((), (index,), (2, 3, 3)):
            assert_equal(logits, make_sample((1, 2, index), generated, seed=index, **params))


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20 000 draws with fixed seeds."""
    logits = np.random.default_rng(3).normal(0, 1, 40).astype(np.float32)
    params: dict[str, Any] = {"temperature": 0.9, "top_k": 25, "top_p": 0.9, "min_p": 0.02}
    num_draws = 20_000
    drawn = native_draw(logits, *(make_sample(seed=seed, **params) for seed in range(num_draws)))
    counts = np.bincount([token for token, _, _ in drawn], minlength=40)
    candidates, weights = candidate_distribution(logits, make_sample(**params).params)
    expected = num_draws * weights / weights.sum()
    assert counts.sum() == counts[candidates].sum() == num_draws
    chi_square = ((counts[candidates] - expected) ** 2 / expected).sum()
    degrees = len(candidates) - 1
    assert degrees > 5
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_a_problem_of_their_row(bad: float, temperature: float) -> None:
    logits = np.zeros((2, 700), np.float32)
    logits[0, 650] = bad
    logits[1, 3] = 90.0
    request = SampleRequests(700).request("a", make_sample(temperature=temperature))
    failed, fine = load_extension().draw(logits, [request, request])
    assert DRAW_PROBLEMS[failed[1]].startswith("the model produced logits that are not finite")
    assert fine == (3, 0, None)


def test_masking_every_token_is_a_problem_of_its_row() -> None:
    logits = np.zeros(2, np.float32)
    masked, fine = native_draw(logits, make_sample(min_tokens=1, stop_token_ids=(0, 1)), make_sample(temperature=0.0))
    assert "min_tokens" in DRAW_PROBLEMS[masked[1]]
    assert fine == (0, 0, None)


def test_counts_grow_with_the_answer_and_start_over_for_another_one() -> None:
    logits = np.linspace(0, 1, 50).astype(np.float32)
    requests = SampleRequests(50)
    params = SamplingParams(max_tokens=99, seed=1, temperature=0.0, repetition_penalty=1.1, frequency_penalty=0.05)

    def generate(prompt: tuple[int, ...], answer: list[int], count: int) -> None:
        for _ in range(count):
            sample = SampleInput(params, prompt, answer)
            ((token, _, _),) = load_extension().draw(logits[None], [requests.request("one", sample)])
            assert token == sample_token(logits, sample)
            answer.append(token)

    first: list[int] = []
    generate((49, 48, 99, 48), first, 60)
    assert len(set(first)) > 16
    generate((3,), [], 5)
    requests.release("one")
    generate((49, 48), first, 5)
    requests.release("unknown")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((-1.0, 0, 1.0, 0.0, (0, 0), 0, -1, None), "temperature"),
        ((float("nan"), 0, 1.0, 0.0, (0, 0), 0, -1, None), "temperature"),
        ((1.0, 0, float("nan"), 0.0, (0, 0), 0, -1, None), "top_p"),
        ((1.0, 0, 1.0, 1.5, (0, 0), 0, -1, None), "min_p"),
        ((1.0, 0), "8 values"),
    ],
)
def test_bad_requests_are_refused(change: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_extension().draw(np.zeros((1, 4), np.float32), [change])


def test_ids_outside_the_vocabulary_and_missing_rows_are_refused() -> None:
    ids, counts = np.array([4], np.int32), np.array([1], np.int32)
    none, values = np.empty(0, np.int32), np.empty(0, np.float32)
    for adjustments in (
        (1.1, 0.0, 0.0, ids, counts, none, values, none),
        (1.1, 0.0, 0.0, none, none, ids, np.ones(1, np.float32), none),
        (1.1, 0.0, 0.0, none, none, none, values, ids),
    ):
        with pytest.raises(ValueError, match="token id 4 lies outside"):
            load_extension().draw(np.zeros((1, 4), np.float32), [(1.0, 0, 1.0, 0.0, (0, 0), 0, -1, adjustments)])
    with pytest.raises(ValueError, match="needs a count"):
        bad = (1.1, 0.0, 0.0, ids, none, none, values, none)
        load_extension().draw(np.zeros((1, 9), np.float32), [(1.0, 0, 1.0, 0.0, (0, 0), 0, -1, bad)])
    with pytest.raises(ValueError, match="one per token"):
        load_extension().draw(np.zeros((2, 4), np.float32), [None])
