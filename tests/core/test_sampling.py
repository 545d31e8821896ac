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
    token_logprobs,
    token_weights,
    uniform_bits,
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


def spread(vocab_size: int, candidates: npt.NDArray[np.int64], probabilities: npt.NDArray[np.int64]) -> Any:
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
    return draw(candidates, probabilities, uniform_bits(params.seed, index))


def test_draw_inverts_the_cumulative_distribution_at_fixed_numbers() -> None:
    candidates, weights = np.asarray([3, 7, 9]), np.asarray([1, 2, 1])
    quarter = 2**51
    bits = [0, quarter - 1, quarter, 3 * quarter - 1, 3 * quarter, 2**53 - 1]
    assert [draw(candidates, weights, number) for number in bits] == [3, 3, 7, 7, 9, 9]


def test_draw_does_not_round_where_weights_are_largest() -> None:
    candidates, weights = np.asarray([0, 1]), np.asarray([2**62 - 1, 1])
    assert draw(candidates, weights, 2**53 - 1) == 0
    assert draw(candidates, weights[::-1].copy(), 0) == 0


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 0.3, 1.0, 7.0, 1e300])
def test_weights_are_the_exponentials_in_units_of_the_best(temperature: float) -> None:
    scores = np.random.default_rng(4).normal(0, 6, 500).astype(np.float32)
    scores[3] = -np.inf
    weights = token_weights(scores, temperature)
    with np.errstate(over="ignore"):
        exact = np.exp((scores.astype(np.float64) - scores.max()) / temperature) * 2.0**44
    assert weights.max() == weights[np.argmax(scores)] == 2**44
    assert np.abs(weights - exact).max() <= 1.0
    assert weights[3] == 0


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    logits = array(1, 5, 2, 5, -300)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    found = token_logprobs(logits, 2, 3)
    assert found.logprob == pytest.approx(exact[2], abs=1e-12)
    assert [token for token, _ in found.top] == [1, 3, 2]
    assert [value for _, value in found.top] == pytest.approx(exact[[1, 3, 2]], abs=1e-12)
    assert token_logprobs(logits, 4, 0).top == ()
    assert token_logprobs(logits, 4, 0).logprob == pytest.approx(exact[4], abs=1e-9)
    assert len(token_logprobs(logits, 4, 20).top) == 5


def test_logit_bias_comes_last_and_ignores_unknown_tokens() -> None:
    sample = make_sample(generated=[0], repetition_penalty=2.0, logit_bias=((0, -3.0), (1, 1.5), (99, 7.0)))
    np.testing.assert_array_equal(adjust_logits(array(4, 0), sample), array(-1, 1.5))
    assert sample_token(array(4, 0), make_sample(temperature=0.0, logit_bias=((0, -100.0),))) == 1


def test_uniform_is_philox_and_depends_on_seed_and_index_alone() -> None:
    raw = int(np.random.Philox(key=42, counter=5).random_raw())
    assert uniform_bits(42, 5) == raw >> 11
    numbers = {uniform_bits(seed, index) for seed in (-1, 0, 1, 2**63, 2**64 - 1) for index in range(20)}
    assert len(numbers) == 100
    assert all(0 <= number < 2**53 for number in numbers)


def test_uniform_is_uniform_over_indices_and_over_seeds() -> None:
    for bits in ([uniform_bits(7, index) for index in range(2000)], [uniform_bits(seed, 0) for seed in range(2000)]):
        numbers = np.asarray(bits) * 2.0**-53
        deviations = np.sort(numbers) - (np.arange(2000) + 0.5) / 2000
        assert np.abs(deviations).max() < 1.95 / np.sqrt(2000)  # Kolmogorov-Smirnov, p = 0.001


def test_greedy_takes_the_lowest_index_on_ties() -> None:
    assert sample_token(array(0, 5, 1, 5), make_sample(temperature=0.0)) == 1


def test_tiny_temperature_is_greedy_and_stays_finite() -> None:
    assert sample_token(array(0, 3, 2), make_sample(temperature=1e-30)) == 1


def test_the_generated_count_is_the_draw_index() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    drawn = [sample_token(logits, make_sample(generated=[1] * count, seed=9)) for count in range(5)]
    assert drawn == [uniform_bits(9, count) * 1000 >> 53 for count in range(5)]


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
        {"logit_bias": ((3, 1.0),)},
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
