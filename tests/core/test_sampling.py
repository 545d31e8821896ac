"""The reference sampler against naive implementations of the same definitions, fixed uniforms and properties."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.api import SamplingParams
from glass_core.errors import EngineFailureError
from glass_core.runners.base import SampleInput
from glass_core.runners.sampling import (
    adjust_logits,
    candidate_distribution,
    draw,
    is_plain_greedy,
    sample_token,
    uniform,
)

FloatArray = npt.NDArray[np.float32]


def make_sample(prompt: Sequence[int] = (), generated: Sequence[int] = (), **params: Any) -> SampleInput:
    return SampleInput(SamplingParams(max_tokens=16, **{"seed": 0, **params}), tuple(prompt), tuple(generated))


def make_params(**params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=16, **{"seed": 0, **params})


def array(*values: float) -> FloatArray:
    return np.asarray(values, dtype=np.float32)


def naive_distribution(logits: FloatArray, params: SamplingParams) -> npt.NDArray[np.float64]:
    """Full sorts and plain loops, (vocab_size,) normalized: the definitions, slowly."""
    scaled = logits.astype(np.float64) / params.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if 0 < params.top_k < len(logits):
        smallest = logits[order[params.top_k - 1]]
        probabilities = np.where(logits >= smallest, probabilities, 0.0)
        probabilities /= probabilities.sum()
    if params.top_p < 1.0:
        kept: list[int] = []
        mass = 0.0
        for token in order:
            if kept and mass >= params.top_p:
                break
            kept.append(token)
            mass += probabilities[token]
        mask = np.zeros(len(logits))
        mask[kept] = 1.0
        probabilities = probabilities * mask / (probabilities * mask).sum()
    probabilities = np.where(probabilities >= params.min_p * probabilities.max(), probabilities, 0.0)
    result: npt.NDArray[np.float64] = probabilities / probabilities.sum()
    return result


def spread(vocab_size: int, candidates: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> Any:
    full = np.zeros(vocab_size)
    full[candidates] = probabilities / probabilities.sum()
    return full


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.9, "top_k": 12, "top_p": 0.7, "min_p": 0.05},
    ],
)
def test_distribution_equals_the_naive_one_and_draws_follow_it(settings_: dict[str, Any]) -> None:
    logits = np.random.default_rng(3).normal(0, 1, 40).astype(np.float32)
    params = make_params(**settings_)
    expected = naive_distribution(logits, params)
    np.testing.assert_allclose(spread(40, *candidate_distribution(logits, params)), expected, atol=1e-12)

    num_draws = 4000
    counts = np.bincount([draw_at(logits, params, index) for index in range(num_draws)], minlength=40)
    assert counts[expected == 0].sum() == 0
    alive = expected > 0
    chi_square = (((counts - num_draws * expected) ** 2)[alive] / (num_draws * expected[alive])).sum()
    degrees = int(alive.sum()) - 1
    assert degrees > 0
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def draw_at(logits: FloatArray, params: SamplingParams, index: int) -> int:
    candidates, probabilities = candidate_distribution(logits, params)
    return draw(candidates, probabilities, uniform(params.seed, index))


def test_draw_inverts_the_cumulative_distribution_at_fixed_numbers() -> None:
    candidates = np.asarray([3, 7, 9], dtype=np.int64)
    probabilities = np.asarray([1.0, 2.0, 1.0])
    numbers = [0.0, 0.2499, 0.25, 0.7499, 0.75, 1.0 - 2.0**-53]
    assert [draw(candidates, probabilities, number) for number in numbers] == [3, 3, 7, 7, 9, 9]


def test_draw_survives_rounding_at_the_upper_end() -> None:
    candidates = np.asarray([1, 2], dtype=np.int64)
    assert draw(candidates, np.asarray([0.1, 0.2]), 1.0) == 2


def test_uniform_is_philox_and_depends_on_seed_and_index_alone() -> None:
    raw = int(np.random.Philox(key=42, counter=5).random_raw())
    assert uniform(42, 5) == (raw >> 11) / 2**53
    numbers = {uniform(seed, index) for seed in (-1, 0, 1, 2**63, 2**64 - 1) for index in range(20)}
    assert len(numbers) == 100
    assert all(0.0 <= number < 1.0 for number in numbers)


def test_uniform_is_uniform_over_indices_and_over_seeds() -> None:
    for numbers in ([uniform(7, index) for index in range(2000)], [uniform(seed, 0) for seed in range(2000)]):
        deviations = np.sort(numbers) - (np.arange(2000) + 0.5) / 2000
        assert np.abs(deviations).max() < 1.95 / np.sqrt(2000)  # Kolmogorov-Smirnov, p = 0.001


def test_greedy_takes_the_lowest_index_on_ties() -> None:
    assert sample_token(array(0, 5, 1, 5), make_sample(temperature=0.0)) == 1


def test_tiny_temperature_is_greedy_and_stays_finite() -> None:
    assert sample_token(array(0, 3, 2), make_sample(temperature=1e-30)) == 1


def test_the_generated_count_is_the_draw_index() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    drawn = [sample_token(logits, make_sample(generated=[1] * count, seed=9)) for count in range(5)]
    assert drawn == [int(uniform(9, count) * 1000) for count in range(5)]


def test_repetition_penalty_covers_prompt_and_generated_tokens_once() -> None:
    sample = make_sample(prompt=[0, 0, 1], generated=[2, 2], repetition_penalty=2.0)
    np.testing.assert_array_equal(adjust_logits(array(4, -4, 6, 8), sample), array(2, -8, 3, 8))


def test_presence_and_frequency_penalties_cover_generated_tokens_only() -> None:
    sample = make_sample(prompt=[3], generated=[0, 0, 1], presence_penalty=0.5, frequency_penalty=0.25)
    np.testing.assert_array_equal(adjust_logits(array(1, 1, 1, 1), sample), array(0, 0.25, 1, 1))


def test_repetition_comes_before_the_additive_penalties() -> None:
    sample = make_sample(generated=[0], repetition_penalty=2.0, presence_penalty=1.0)
    assert adjust_logits(array(4, 0), sample)[0] == 1.0


def test_penalties_change_the_greedy_answer() -> None:
    assert sample_token(array(5, 4.5), make_sample(generated=[0], temperature=0.0, presence_penalty=1.0)) == 1


def test_stop_tokens_cannot_be_drawn_before_min_tokens() -> None:
    logits = array(1, 9, 2)
    options: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (1, 77)}
    assert sample_token(logits, make_sample(generated=[0], **options)) == 2
    assert sample_token(logits, make_sample(generated=[0, 2], **options)) == 1


def test_masking_every_token_is_an_error() -> None:
    sample = make_sample(min_tokens=1, stop_token_ids=(0, 1))
    with pytest.raises(EngineFailureError, match="min_tokens"):
        sample_token(array(1, 2), sample)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineFailureError, match="not finite"):
            sample_token(array(1, bad, 2), make_sample(temperature=temperature))


def test_the_logits_are_left_unchanged() -> None:
    logits = array(1, 2, 3)
    sample_token(logits, make_sample(prompt=[0], generated=[2], repetition_penalty=1.5, frequency_penalty=1.0))
    np.testing.assert_array_equal(logits, array(1, 2, 3))


def test_top_k_keeps_ties_with_the_last_kept() -> None:
    candidates, _ = candidate_distribution(array(1, 3, 2, 2), make_params(top_k=2))
    assert candidates.tolist() == [1, 2, 3]


def test_top_p_keeps_at_least_the_most_probable_token() -> None:
    for top_p in (0.0, 1e-12):
        candidates, _ = candidate_distribution(array(1, 3, 2), make_params(top_p=top_p))
        assert candidates.tolist() == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"min_tokens": 1},
    ],
)
def test_only_unpenalized_greedy_rows_are_plain(change: dict[str, Any]) -> None:
    assert is_plain_greedy(make_sample(temperature=0.0))
    assert not is_plain_greedy(make_sample(**{"temperature": 0.0, **change}))


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=50),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_draws_lie_in_the_naive_support(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    scores = np.asarray(logits, dtype=np.float32)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    candidates, probabilities = candidate_distribution(scores, make_params(**options))
    assert (np.diff(candidates) > 0).all()
    assert (probabilities > 0).all()
    assert int(np.argmax(scores)) in candidates or scores[candidates].max() == scores.max()
    first = sample_token(scores, make_sample(seed=seed, **options))
    assert first in candidates
    assert first == sample_token(scores, make_sample(seed=seed, **options))


@settings(max_examples=40, deadline=None)
@given(
    values=st.permutations(list(range(24))),
    top_k=st.integers(0, 24),
    top_p=st.floats(0.05, 0.99),
    min_p=st.floats(0.0, 0.5),
)
def test_filters_equal_the_naive_definition_on_distinct_logits(
    values: list[int], top_k: int, top_p: float, min_p: float
) -> None:
    logits = array(*(value / 4 for value in values))
    params = make_params(top_k=top_k, top_p=top_p, min_p=min_p)
    actual = spread(24, *candidate_distribution(logits, params))
    np.testing.assert_allclose(actual, naive_distribution(logits, params), atol=1e-9)
