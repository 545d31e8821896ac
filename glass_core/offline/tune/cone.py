"""ConicGrad's direction and its dual step, from the Gram matrix of the gradients alone. numpy, in batches.

Source: Hassanpour et al., "Fantastic Multi-Task Gradient Updates and How to Find Them In a Cone", arXiv 2502.00217.
With K gradients g_i, their mean g_0 and g_w = sum_i w_i g_i, the direction maximizes <g_w, d> among the unit vectors of
the cone <g_0, d> >= c |g_0|, and is made as long as g_0. That maximum is taken exactly: along g_w where that is in the
cone, else on the cone's edge in the plane of g_0 and g_w. (The paper's own closed form comes from the Lagrangian of the
squared constraint, whose matrix is indefinite for c < 1.)
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SMALLEST_SHARE = 1e-8
_ROUNDINGS = 1e3


class ConicCombination:
    """ConicGrad with its state, the logits xi of the objectives' weights w = softmax(xi), which start equal.

    `min_cosine` is the paper's c, 0 … 1; `weight_step` the step of gradient descent on the dual after each direction.
    Deterministic: the state is a function of the Gram matrices seen since the start or `reset`.
    """

    def __init__(self, min_cosine: float, weight_step: float) -> None:
        if not 0 <= min_cosine <= 1:
            raise ValueError(f"c: {min_cosine}; expected a cosine, 0 to 1")
        if not 0 <= weight_step < np.inf:
            raise ValueError(f"weight_step: {weight_step}; expected a finite number, 0 or more")
        self.min_cosine = min_cosine
        self.weight_step = weight_step
        self.dual: Floats | None = None

    def reset(self) -> None:
        """Back to equal weights, of any number of objectives."""
        self.dual = None

    def coefficients(self, gram: Floats, share: float = _SMALLEST_SHARE) -> Floats:
        """Coefficients of the direction for the present weights, as `conic_coefficients`; then one step of the weights.

        Raises ValueError where the weights so far are of another number of objectives.
        """
        dual = np.zeros(gram.shape[:-1]) if self.dual is None else self.dual
        if dual.shape != gram.shape[:-1]:
            raise ValueError(f"Gram matrix of shape {gram.shape}; the weights so far have {dual.shape}: reset() first")
        weights = softmax(dual)
        coefficients = conic_coefficients(gram, weights, self.min_cosine, share)
        self.dual = dual - self.weight_step * dual_gradient(gram, weights, coefficients)
        return coefficients


def smallest_share(epsilon: float) -> float:
    """Squared length, as a share of the largest gradient's, below which a combination of them has no sure direction.

    Where gradients cancel, the squared length of what remains carries the roundings of the large ones, so it must be
    much more than `epsilon`, the relative rounding of the Gram matrix's entries.
    """
    return max(_SMALLEST_SHARE, _ROUNDINGS * epsilon)


def softmax(dual: Floats) -> Floats:
    """Weights of the objectives, shape (..., K): positive, sum 1."""
    exponentials: Floats = np.exp(dual - dual.max(axis=-1, keepdims=True))
    weights: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return weights


def conic_coefficients(gram: Floats, weights: Floats, min_cosine: float, share: float = _SMALLEST_SHARE) -> Floats:
    """Coefficients a, shape (..., K), of ConicGrad's direction d = sum_i a_i g_i.

    `gram` holds the products <g_i, g_j>, shape (..., K, K); `weights`, shape (..., K), sum to 1; `min_cosine` is c,
    0 … 1. Always cos(d, g_0) >= c and |d| = |g_0|. It is the mean gradient, a_i = 1/K, where nothing else is sure:
    g_0 vanishes, or the part of g_w across g_0 does (g_w points along or against g_0, or vanishes too). Vanishing means
    a squared length of at most `share` of the largest gradient's (see `smallest_share`).
    """
    num_objectives = weights.shape[-1]
    gram = _of_largest(gram)  # the coefficients do not depend on the gradients' scale, and no square overflows
    with_mean: Floats = gram.sum(axis=-1) / num_objectives
    with_weighted: Floats = (gram @ weights[..., None])[..., 0]
    mean_square = with_mean.sum(axis=-1, keepdims=True) / num_objectives
    weighted_square = _dot(weights, with_weighted)
    mean_length = np.sqrt(_divisor(mean_square, share))
    along = _dot(weights, with_mean) / mean_length
    across_square = weighted_square - along * along
    inside = along >= min_cosine * np.sqrt(np.maximum(weighted_square, 0))
    scaled = mean_length / np.sqrt(_divisor(weighted_square, share)) * weights
    to_edge = np.sqrt((1 - min_cosine * min_cosine) / _divisor(across_square, share))
    edge = to_edge * mean_length * weights + (min_cosine - to_edge * along) / num_objectives
    degenerate = np.minimum(mean_square, across_square) <= share
    return np.where(degenerate, 1 / num_objectives, np.where(inside, scaled, edge))


def dual_gradient(gram: Floats, weights: Floats, coefficients: Floats) -> Floats:
    """Gradient of <g_w, d> with respect to the logits of `weights`, d held fixed: w * (h - <w, h>), h_i = <g_i, d>."""
    gains: Floats = (gram @ coefficients[..., None])[..., 0]
    return weights * (gains - _dot(weights, gains))


def _dot(left: Floats, right: Floats) -> Floats:
    product: Floats = (left * right).sum(axis=-1, keepdims=True)
    return product


def _of_largest(gram: Floats) -> Floats:
    """The Gram matrix as a share of the largest gradient's square; zeros stay zeros."""
    largest = np.diagonal(gram, axis1=-2, axis2=-1).max(axis=-1)[..., None, None]
    return gram / np.where(largest > 0, largest, 1)


def _divisor(squares: Floats, share: float) -> Floats:
    """1 for squares that vanish: what is computed with those is not used."""
    return np.where(squares > share, squares, 1.0)
