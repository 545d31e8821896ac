"""Ranks, their weighted fusion and top-k, exact: no result here depends on rounding or on a sort's implementation.

Neurons are compared by rank, not by value: r in {0 .. m-1}, larger = more important, and of two equal neurons the one
with the lower index is the more important. Fusion is a weighted Borda count (GLASS, arXiv 2508.14302):
`score = (1 - lambda) * r_local + lambda * r_global`.

Why ranks may be averaged: see each ranking as a noisy copy of one true ranking, drawn from a Mallows-type model
P(r) ~ exp(-theta * d(r, true)) with Spearman's distance d = sum_j (r[j] - true[j])^2. The true ranking of highest
posterior is then the order of theta_L * r_L + theta_G * r_G, so lambda = theta_G / (theta_L + theta_G): our trust.

Sorting packs (score, index) into one 64-bit integer: keys are unique, so the fast unstable sort is deterministic
(20x faster than numpy's stable argsort, and selection stands between a prompt and its first sparse token).
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.plan import NeuronIndices

Ranks = npt.NDArray[np.int64]
Scores = npt.NDArray[np.int64]

# lambda is taken as the nearest fraction with at most this denominator: 0.3 is exactly 3/10, so neurons that tie on
# paper tie here too, where floating point would break the tie by its rounding error.
MAX_LAMBDA_DENOMINATOR = 1_000_000

_INDEX_BITS = 24
_SCORE_BITS = 40
_SIGN_BIT = np.uint32(1 << 31)


def ranks(values: FloatArray) -> Ranks:
    """Ranks of each row of `values` (num_layers, m) float32.

    Raises ValueError when a value is NaN or infinite: it has no rank, and sorting it would hide the fault.
    """
    if values.dtype != np.float32:
        raise ValueError(f"expected float32 statistics, got {values.dtype}")
    if not np.isfinite(values).all():
        layers = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise ValueError(f"statistics of layer(s) {', '.join(map(str, layers))} contain NaN or infinity")
    order = _descending(_order_preserving_integers(values))
    num_neurons = values.shape[1]
    result = np.empty(values.shape, np.int64)
    np.put_along_axis(result, order, np.arange(num_neurons - 1, -1, -1)[np.newaxis, :], axis=1)
    return result


def fuse(local_ranks: Ranks, global_ranks: Ranks, lambdas: Sequence[float]) -> Scores:
    """Weighted Borda scores (num_layers, m) from two rankings; `lambdas[l]` in [0, 1] weighs the global one in layer l.

    Scores are integers: layer l's are scaled by the denominator of lambdas[l], which changes no order within a layer.
    """
    fractions = [Fraction(value).limit_denominator(MAX_LAMBDA_DENOMINATOR) for value in lambdas]
    global_weight = np.array([[f.numerator] for f in fractions], np.int64)
    local_weight = np.array([[f.denominator - f.numerator] for f in fractions], np.int64)
    return local_weight * local_ranks + global_weight * global_ranks


def top_k(scores: Scores, budgets: Sequence[int]) -> tuple[NeuronIndices, ...]:
    """The `budgets[l]` best neurons of each layer, ties to the lower index; indices int32, ascending, read-only."""
    order = _descending(scores)
    return tuple(_frozen(np.sort(row[:budget])) for row, budget in zip(order, budgets, strict=True))


def share_within_top_k(neurons: Sequence[NeuronIndices], reference: Ranks) -> float:
    """Share of the chosen `neurons` that the ranking `reference` (num_layers, m) would also keep at equal budgets."""
    num_neurons = reference.shape[1]
    shared = sum(
        int(np.count_nonzero(row[indices] >= num_neurons - len(indices)))
        for row, indices in zip(reference, neurons, strict=True)
    )
    return shared / sum(len(indices) for indices in neurons)


def _order_preserving_integers(values: FloatArray) -> Scores:
    """Integers in [0, 2^32) that compare as the finite float32 values do.

    IEEE 754 bit patterns of positive numbers grow with the number; those of negative numbers shrink.
    """
    bits = (values + np.float32(0.0)).view(np.uint32)  # -0.0 + 0.0 = 0.0: the two zeros are one value
    return np.where(bits & _SIGN_BIT, ~bits, bits | _SIGN_BIT).astype(np.int64)


def _descending(scores: Scores) -> npt.NDArray[np.int64]:
    """Indices of each row of `scores` (num_layers, m), integers in [0, 2^40), best first, ties by lower index."""
    num_neurons = scores.shape[1]
    if num_neurons > 1 << _INDEX_BITS:
        raise ValueError(f"at most {1 << _INDEX_BITS} neurons per layer can be ranked, got {num_neurons}")
    highest = (1 << _SCORE_BITS) - 1
    if scores.size and (scores.min() < 0 or scores.max() > highest):
        raise ValueError(f"scores must lie in [0, {highest}], got {scores.min()} to {scores.max()}")
    packed = ((highest - scores).astype(np.uint64) << np.uint64(_INDEX_BITS)) | np.arange(num_neurons, dtype=np.uint64)
    packed.sort(axis=1)
    return (packed & np.uint64((1 << _INDEX_BITS) - 1)).astype(np.int64)


def _frozen(indices: npt.NDArray[np.int64]) -> NeuronIndices:
    neurons = indices.astype(np.int32)
    neurons.setflags(write=False)
    return neurons
