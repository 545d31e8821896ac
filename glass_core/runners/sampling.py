"""The reference sampler: how one row of logits becomes one token. numpy only, so every runner can share it.

Order, which is that of HF's `generate` (vLLM applies min_p before top_k):

    1. penalties: repetition over prompt and generated tokens (CTRL, arXiv 1909.05858), then frequency and presence over
       generated ones (OpenAI's API reference)
    2. stop tokens are masked while fewer than min_tokens tokens exist
    3. temperature 0: argmax, the lowest index on ties; else divide by the temperature
    4. top_k, then top_p over what top_k left (arXiv 1904.09751), then min_p (arXiv 2407.01082)
    5. one draw through the inverse of the cumulative distribution, in the order of token ids

The uniform number of a draw comes from Philox, a counter-based generator (Salmon et al., SC 2011), keyed by the seed
with the draw's index as the counter. No state is kept: the same seed gives the same answer whatever else is in the
batch, and a preempted sequence resumes where it was.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glass_core.api import SamplingParams
from glass_core.errors import EngineFailureError
from glass_core.runners.base import SampleInput

Logits = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

_SEED_MASK = (1 << 128) - 1


def sample_token(logits: Logits, sample: SampleInput) -> int:
    """Draw the next token of one row.

    `logits` is (vocab_size,) float32 and is left unchanged. Raises EngineFailureError when a logit is NaN or infinite,
    or when the stop tokens leave nothing to draw.
    """
    if not np.isfinite(logits).all():
        raise EngineFailureError("the model produced logits that are not finite; no token can be drawn")
    params = sample.params
    scores = adjust_logits(logits, sample)
    best = int(np.argmax(scores))
    if not np.isfinite(scores[best]):
        raise EngineFailureError("min_tokens forbids every token of the vocabulary; no token can be drawn")
    if params.temperature == 0.0:
        return best
    candidates, probabilities = candidate_distribution(scores, params)
    return draw(candidates, probabilities, uniform(params.seed, len(sample.generated_token_ids)))


def is_plain_greedy(sample: SampleInput) -> bool:
    """Whether the answer is the argmax of the raw logits, so that a runner may take it on its device."""
    params = sample.params
    return (
        params.temperature == 0.0
        and params.repetition_penalty == 1.0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
        and len(sample.generated_token_ids) >= params.min_tokens
    )


def uniform(seed: int, index: int) -> float:
    """Number in [0, 1) with 53 random bits for draw `index` of a seed (any int; taken modulo 2**128)."""
    raw = np.random.Philox(key=seed & _SEED_MASK, counter=index).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def adjust_logits(logits: Logits, sample: SampleInput) -> Logits:
    """Penalties and the mask of stop tokens before min_tokens. Returns a new (vocab_size,) array; masked = -inf."""
    scores = logits.astype(np.float32, copy=True)
    _apply_repetition_penalty(scores, sample)
    _apply_count_penalties(scores, sample)
    params = sample.params
    if len(sample.generated_token_ids) < params.min_tokens:
        scores[_in_vocabulary(params.stop_token_ids, len(scores))] = -np.inf
    return scores


def candidate_distribution(scores: Logits, params: SamplingParams) -> tuple[TokenIds, Probabilities]:
    """Token ids that survive top_k, top_p and min_p, ascending, and their unnormalized probabilities.

    `scores` is (vocab_size,), finite somewhere; temperature must be positive. Tokens tied with the k-th are all kept.
    """
    candidates = _top_k(scores, params.top_k)
    shifted = scores[candidates].astype(np.float64)
    # subtracting the maximum first keeps tiny temperatures finite
    probabilities = np.exp((shifted - shifted.max()) / params.temperature)
    for keep in (_top_p_mask(probabilities, params.top_p), _min_p_mask(probabilities, params.min_p)):
        probabilities = np.where(keep, probabilities, 0.0)
    alive = probabilities > 0.0
    return candidates[alive], probabilities[alive]


def draw(candidates: TokenIds, probabilities: Probabilities, number: float) -> int:
    """Inverse of the cumulative distribution at `number` in [0, 1). All probabilities are positive."""
    cumulative = np.cumsum(probabilities)
    position = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    # number * total may round up to total itself
    return int(candidates[min(position, len(candidates) - 1)])


def _apply_repetition_penalty(scores: Logits, sample: SampleInput) -> None:
    penalty = sample.params.repetition_penalty
    if penalty == 1.0:
        return
    seen = np.unique(_in_vocabulary([*sample.prompt_token_ids, *sample.generated_token_ids], len(scores)))
    values = scores[seen]
    scores[seen] = np.where(values > 0, values / penalty, values * penalty)


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


def _top_p_mask(probabilities: Probabilities, top_p: float) -> npt.NDArray[np.bool_]:
    """The nucleus: the smallest set of most probable candidates that holds a share top_p of the mass; never empty.

    Candidates below (1 - top_p)/n of the total hold less than 1 - top_p together, so the nucleus lies above that bound
    and only what is above it gets sorted. Ties go to the lower token id.
    """
    if top_p >= 1.0:
        return np.ones(len(probabilities), dtype=np.bool_)
    total = probabilities.sum()
    above = np.flatnonzero(probabilities >= (1.0 - top_p) * total / len(probabilities))
    order = above[np.argsort(-probabilities[above], kind="stable")]
    mass_before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[mass_before < top_p * total]
    mask = np.zeros(len(probabilities), dtype=np.bool_)
    mask[kept if len(kept) else order[:1]] = True
    return mask


def _min_p_mask(probabilities: Probabilities, min_p: float) -> npt.NDArray[np.bool_]:
    """Candidates at least min_p times as probable as the most probable one."""
    threshold = min_p * float(probabilities.max())
    return np.greater_equal(probabilities, threshold)
