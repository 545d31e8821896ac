"""The reference sampler: how one row of logits becomes one token. numpy only, so every runner can share it.

Order, which is that of HF's `generate` (vLLM applies min_p before top_k):

    1. penalties: repetition over prompt and generated tokens (CTRL, arXiv 1909.05858), then frequency and presence over
       generated ones, then the logit bias (OpenAI's API reference)
    2. stop tokens are masked while fewer than min_tokens tokens exist
    3. temperature 0: argmax, the lowest index on ties; else divide by the temperature
    4. top_k, then top_p over what top_k left (arXiv 1904.09751), then min_p (arXiv 2407.01082)
    5. one draw through the inverse of the cumulative distribution, in the order of token ids

Every implementation draws the same token from the same logits, bit for bit: probabilities are weights, integers in
units of 2**-44 of the most probable token's, made by IEEE double operations in a fixed order (no library's exp), and
from there on everything is integer arithmetic, whose sums do not depend on their order. What is 2**45 times less
probable than the best token has weight 0 and cannot be drawn.

The uniform number of a draw comes from Philox, a counter-based generator (Salmon et al., SC 2011), keyed by the seed
with the draw's index as the counter. No state is kept: the same seed gives the same answer whatever else is in the
batch, and a preempted sequence resumes where it was.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glass_core.api import SamplingParams, TokenLogprobs
from glass_core.errors import EngineFailureError
from glass_core.runners.base import SampleInput

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int64]

NOT_FINITE = "the model produced logits that are not finite; no token can be drawn"
NOTHING_LEFT = "min_tokens, penalties and logit_bias leave no token of the vocabulary that can be drawn"
# A best token weighs 2**44: sums over 2**18 tokens stay below 2**63.
WEIGHT_BITS = 44
UNIFORM_BITS = 53
SEED_MASK = (1 << 128) - 1

# The exponential, in doubles: exp(x) = 2**n * exp(r) with |r| <= ln(2)/2, and Taylor's polynomial for exp(r), whose
# error of 6e-15 is a tenth of a weight's unit. ln(2) comes in two parts, so that n * _LN2_HIGH is exact.
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_COEFFICIENTS = tuple(1.0 / math.factorial(order) for order in range(11, -1, -1))
_LOWEST = -32.0  # exp(-32) * 2**44 rounds to 0
_LARGEST_INVERSE = 1e200  # of a temperature; keeps 0 * inverse = 0


def sample_token(logits: Logits, sample: SampleInput) -> int:
    """Draw the next token of one row.

    `logits` is (vocab_size,) float32 and is left unchanged. Raises EngineFailureError when a logit is NaN or infinite,
    or when nothing is left to draw.
    """
    if not np.isfinite(logits).all():
        raise EngineFailureError(NOT_FINITE)
    params = sample.params
    scores = adjust_logits(logits, sample)
    best = int(np.argmax(scores))
    if not np.isfinite(scores[best]):
        raise EngineFailureError(NOTHING_LEFT)
    if params.temperature == 0.0:
        return best
    candidates, weights = candidate_distribution(scores, params)
    return draw(candidates, weights, uniform_bits(params.seed, len(sample.generated_token_ids)))


def token_logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of a drawn token and of the `num_top` most probable ones, ties to the lower id.

    They are the model's own: of the raw logits (vocab_size,), before penalties, bias, temperature and filters.
    """
    best = float(logits.max())
    log_total = math.log(int(token_weights(logits, 1.0).sum()) / 2**WEIGHT_BITS)
    tied = _top_k(logits, num_top) if num_top > 0 else np.empty(0, np.int64)
    order = tied[np.argsort(-logits[tied], kind="stable")][:num_top]
    top = tuple((int(token), float(logits[token]) - best - log_total) for token in order)
    return TokenLogprobs(float(logits[token_id]) - best - log_total, top)


def is_plain_greedy(sample: SampleInput) -> bool:
    """Whether the answer is the argmax of the raw logits, so that a runner may take it on its device."""
    return sample.params.temperature == 0.0 and not adjusts_logits(sample)


def adjusts_logits(sample: SampleInput) -> bool:
    """Whether penalties, bias or min_tokens may change a logit."""
    params = sample.params
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or bool(params.logit_bias)
        or len(sample.generated_token_ids) < params.min_tokens
    )


def uniform_bits(seed: int, index: int) -> int:
    """The 53 random bits of draw `index` of a seed (any int; taken modulo 2**128): a uniform number in [0, 1) times
    2**53."""
    raw = np.random.Philox(key=seed & SEED_MASK, counter=index).random_raw()
    return int(raw) >> (64 - UNIFORM_BITS)


def adjust_logits(logits: Logits, sample: SampleInput) -> Logits:
    """Penalties, bias, and the mask of stop tokens before min_tokens: a new (vocab_size,) array, masked = -inf."""
    scores = logits.astype(np.float32, copy=True)
    _apply_repetition_penalty(scores, sample)
    _apply_count_penalties(scores, sample)
    params = sample.params
    for token_id, bias in params.logit_bias:
        if 0 <= token_id < len(scores):
            scores[token_id] += np.float32(bias)
    if len(sample.generated_token_ids) < params.min_tokens:
        scores[_in_vocabulary(params.stop_token_ids, len(scores))] = -np.inf
    return scores


def token_weights(scores: Logits, temperature: float) -> Weights:
    """round(2**44 * exp((score - best score) / temperature)) of every score; one of them must be finite."""
    inverse = min(1.0 / temperature, _LARGEST_INVERSE)
    x = np.maximum((scores.astype(np.float64) - float(scores.max())) * inverse, _LOWEST)
    n = np.rint(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    power = np.full_like(r, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        power *= r
        power += coefficient
    return np.rint(np.ldexp(power, n.astype(np.int32) + WEIGHT_BITS)).astype(np.int64)


def candidate_distribution(scores: Logits, params: SamplingParams) -> tuple[TokenIds, Weights]:
    """Token ids that survive top_k, top_p and min_p, ascending, and their weights, all positive.

    `scores` is (vocab_size,), finite somewhere; temperature must be positive. Tokens tied with the k-th are all kept.
    """
    candidates = _top_k(scores, params.top_k)
    weights = token_weights(scores[candidates], params.temperature)
    least = max(math.ceil(params.min_p * 2**WEIGHT_BITS), 1)
    alive = _top_p_mask(weights, params.top_p) & (weights >= least)
    return candidates[alive], weights[alive]


def draw(candidates: TokenIds, weights: Weights, bits: int) -> int:
    """Inverse of the cumulative distribution at bits * 2**-53. All weights are positive."""
    cumulative = np.cumsum(weights)
    target = (bits * int(cumulative[-1])) >> UNIFORM_BITS
    return int(candidates[int(np.searchsorted(cumulative, target, side="right"))])


def _apply_repetition_penalty(scores: Logits, sample: SampleInput) -> None:
    penalty = sample.params.repetition_penalty
    if penalty == 1.0:
        return
    seen = np.unique(_in_vocabulary([*sample.prompt_token_ids, *sample.generated_token_ids], len(scores)))
    values = scores[seen]
    scores[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))


def _apply_count_penalties(scores: Logits, sample: SampleInput) -> None:
    params = sample.params
    if params.frequency_penalty == 0.0 and params.presence_penalty == 0.0:
        return
    generated = _in_vocabulary(sample.generated_token_ids, len(scores))
    tokens, counts = np.unique(generated, return_counts=True)
    penalty = params.frequency_penalty * counts + params.presence_penalty
    scores[tokens] -= penalty.astype(np.float32)


def _in_vocabulary(token_ids: Sequence[int], vocab_size: int) -> TokenIds:
    """The ids that index a logit: a tokenizer may know more tokens than the model has rows for."""
    ids = np.asarray(token_ids, dtype=np.int64)
    return ids[(ids >= 0) & (ids < vocab_size)]


def _top_k(scores: Logits, top_k: int) -> TokenIds:
    """Ids of the k largest scores and of whatever ties with the k-th, ascending. A partition, not a sort."""
    if top_k <= 0 or top_k >= len(scores):
        return np.arange(len(scores), dtype=np.int64)
    threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    return np.flatnonzero(scores >= threshold).astype(np.int64)


def _top_p_mask(weights: Weights, top_p: float) -> npt.NDArray[np.bool_]:
    """The nucleus: the smallest set of the heaviest candidates that holds a share top_p of the weight; never empty.

    What is lighter than (total - limit)/n holds less than total - limit together, so the nucleus lies above that bound
    and only what is above it gets sorted. Ties go to the lower token id.
    """
    if top_p >= 1.0:
        return np.ones(len(weights), dtype=np.bool_)
    total = int(weights.sum())
    limit = min(max(math.ceil(top_p * float(total)), 1), total)
    above = np.flatnonzero(weights >= (total - limit) // len(weights))
    order = above[np.argsort(-weights[above], kind="stable")]
    mass_before = np.cumsum(weights[order]) - weights[order]
    mask = np.zeros(len(weights), dtype=np.bool_)
    mask[order[mass_before < limit]] = True
    return mask
