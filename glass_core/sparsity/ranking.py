"""Ranks, their weighted fusion and top-k, exact: no result here depends on rounding or on a sort's implementation.

Neurons are compared by rank, not by value: r in {0 .. m-1}, larger = more important, and of two equal neurons the one
with the lower index is the more important. Fusion is a weighted Borda count (GLASS, arXiv 2508.14302):
`score = (1 - lambda) * r_local + lambda * r_global`.

Why ranks may be averaged: see each ranking as a noisy copy of one true ranking, drawn from a Mallows-type model
P(r) ~ exp(-theta * d(r, true)) with Spearman's distance d = sum_j (r[j] - true[j])^2. The true ranking of highest
posterior is then the order of theta_L * r_L + theta_G * r_G, so lambda = theta_G / (theta_L + theta_G): our trust.

Sorting packs (score, index) into one integer: keys are unique, so the fast unstable sort is deterministic. Sorting such
keys takes a third of the time of sorting indices by their scores, and all layers go through every numpy call together:
selection stands between a prompt and its first sparse token.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.plan import NeuronIndices

Ranks = npt.NDArray[np.int32]
Scores = npt.NDArray[np.integer[Any]]
Keys = npt.NDArray[np.unsignedinteger[Any]]
RankWeights = npt.NDArray[np.int64]

# lambda is taken as the nearest fraction with at most this denominator: 0.3 is exactly 3/10, so neurons that tie on
# paper tie here too, where floating point would break the tie by its rounding error.
MAX_LAMBDA_DENOMINATOR = 1_000_000

_INDEX_BITS = 24
_SCORE_BITS = 40
_SIGN_BIT = np.uint32(1 << 31)
_NUM_REMEMBERED_LAMBDAS = 64


class UnrankableError(ValueError):
    """Values that have no rank."""


def ranks(values: FloatArray) -> Ranks:
    """Ranks of each row of `values` (num_layers, m) float32.

    Raises UnrankableError when a value is NaN or infinite: it has no rank, and sorting it would hide the fault.
    """
    if values.dtype != np.float32:
        raise UnrankableError(f"expected float32 statistics, got {values.dtype}")
    if not np.isfinite(values).all():
        layers = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise UnrankableError(f"statistics of layer(s) {', '.join(map(str, layers))} contain NaN or infinity")
    keys = _unique_keys(_order_preserving_integers(values)).astype(np.uint64, copy=False)
    keys.sort(axis=1)
    ascending = np.arange(values.shape[1], dtype=np.int32)
    result = np.empty(values.shape, np.int32)
    for row, order in zip(result, _indices(keys), strict=True):  # faster than one assignment with two index arrays
        row[order] = ascending
    return result


def fuse(local_ranks: Ranks, global_ranks: Ranks, lambdas: Sequence[float]) -> Scores:
    """Weighted Borda scores (num_layers, m) from two rankings; `lambdas[l]` in [0, 1] weighs the global one in layer l.

    Scores are integers: layer l's are scaled by the denominator of lambdas[l], which changes no order within a layer.
    """
    weights = rank_weights(tuple(lambdas))
    highest = int(weights.sum(axis=1).max()) * local_ranks.shape[1]
    kind = np.int32 if highest < 1 << 31 else np.int64
    weights = weights.astype(kind)
    scores: Scores = np.multiply(local_ranks, weights[:, :1], dtype=kind)
    scores += np.multiply(global_ranks, weights[:, 1:], dtype=kind)
    return scores


@lru_cache(maxsize=_NUM_REMEMBERED_LAMBDAS)
def rank_weights(lambdas: tuple[float, ...]) -> RankWeights:
    """Weights (num_layers, 2) of local and global ranks, read-only: whole numbers in the ratio (1 - lambda) : lambda.

    A layer's add up to the denominator of its lambda, at most MAX_LAMBDA_DENOMINATOR.
    """
    fractions = [Fraction(value).limit_denominator(MAX_LAMBDA_DENOMINATOR) for value in lambdas]
    weights = np.array([(f.denominator - f.numerator, f.numerator) for f in fractions], np.int64)
    weights.setflags(write=False)
    return weights


def top_k(scores: Scores, budgets: Sequence[int]) -> tuple[NeuronIndices, ...]:
    """The `budgets[l]` best neurons of each layer, ties to the lower index; indices int32, ascending, read-only.

    The layers' arrays are slices of one. Raises ValueError when a budget is not in [0, m] or a layer has none.
    """
    num_layers, num_neurons = scores.shape
    counts = np.asarray(budgets, np.int64)
    if counts.shape != (num_layers,) or (counts < 0).any() or (counts > num_neurons).any():
        raise ValueError(f"expected {num_layers} budgets in [0, {num_neurons}], got {list(budgets)}")
    keys = _unique_keys(scores)
    # the lowest kept key of every layer; a layer without any takes the highest, and drops it again
    places = np.minimum(num_neurons - counts, num_neurons - 1)[:, np.newaxis]
    lowest = np.take_along_axis(np.sort(keys, axis=1), places, axis=1)
    kept = (keys >= lowest) & (counts > 0)[:, np.newaxis]
    starts = np.arange(num_layers) * num_neurons
    neurons = (np.flatnonzero(kept) - np.repeat(starts, counts)).astype(np.int32)
    neurons.setflags(write=False)
    ends = np.cumsum(counts).tolist()
    return tuple(neurons[start:end] for start, end in pairwise((0, *ends)))


def share_within_top_k(neurons: Sequence[NeuronIndices], reference: Ranks) -> float:
    """Share of the chosen `neurons` that the ranking `reference` (num_layers, m) would also keep at equal budgets."""
    num_layers, num_neurons = reference.shape
    counts = np.array([len(indices) for indices in neurons], np.int32)
    would_keep = reference >= (num_neurons - counts)[:, np.newaxis]
    chosen = np.concatenate(neurons) + np.repeat(np.arange(num_layers) * num_neurons, counts)
    return int(np.count_nonzero(would_keep.ravel().take(chosen))) / len(chosen)


def _order_preserving_integers(values: FloatArray) -> npt.NDArray[np.uint32]:
    """Integers that compare as the finite float32 values do.

    IEEE 754 bit patterns of positive numbers grow with the number; those of negative numbers shrink.
    """
    bits = (values + np.float32(0.0)).view(np.uint32)  # -0.0 + 0.0 = 0.0: the two zeros are one value
    flips = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits of a negative number, the sign bit of the others
    flips |= _SIGN_BIT
    bits ^= flips
    return bits


def _unique_keys(scores: Scores) -> Keys:
    """Keys (num_layers, m) that compare like the scores, integers in [0, 2^40); of equals, the lower index wins."""
    num_neurons = scores.shape[1]
    if num_neurons > 1 << _INDEX_BITS:
        raise ValueError(f"at most {1 << _INDEX_BITS} neurons per layer can be ranked, got {num_neurons}")
    lowest, highest = int(scores.min(initial=0)), int(scores.max(initial=0))
    if lowest < 0 or highest >= 1 << _SCORE_BITS:
        raise ValueError(f"scores must lie in [0, {(1 << _SCORE_BITS) - 1}], got {lowest} to {highest}")
    index_mask = _index_mask(num_neurons)
    # fused ranks are small: half the bytes sort in half the time
    kind = np.uint32 if (highest + 1) * (index_mask + 1) <= 1 << 32 else np.uint64
    keys: Keys = scores.astype(kind)
    keys *= kind(index_mask + 1)
    keys |= np.arange(index_mask, index_mask - num_neurons, -1, dtype=kind)
    return keys


def _indices(keys: Keys) -> npt.NDArray[np.int64]:
    """The indices within a layer that 64-bit keys were made from; the keys are overwritten."""
    np.invert(keys, out=keys)
    keys &= keys.dtype.type(_index_mask(keys.shape[1]))
    return keys.view(np.int64)


def _index_mask(num_neurons: int) -> int:
    """All bits that an index within a layer may have."""
    return (1 << (num_neurons - 1).bit_length()) - 1
