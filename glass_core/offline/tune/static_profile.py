"""What static tuning learns, two numbers per layer without bounds, and the profile that they stand for.

Parameters are (2, num_layers) float64: logits of the lambdas, logarithms of the prune weights. One set serves every
sparsity: the pruning at each is shared out by the same weights, so the scheduler's knob stays one number.
"""

import numpy as np

from glass_core.offline.tune.offsets import FloatArray
from glass_core.sparsity.budget import TUNED, Profile
from glass_core.sparsity.selection import DEFAULT_LAMBDA

# A profile's lambdas are whole hundredths: fused ranks are then integers that sort as 32 bits (see `ranking.fuse`).
_LAMBDA_STEPS = 100
_WEIGHT_DIGITS = 6
# logits and logarithms of values at the end of their range
_SMALLEST = 1e-3


def parameters_of(profile: Profile) -> FloatArray:
    """The parameters of a profile, (2, num_layers); without lambdas of its own, of the default."""
    lambdas = np.array(profile.lambdas or (DEFAULT_LAMBDA,) * profile.num_layers)
    inner = lambdas.clip(_SMALLEST, 1.0 - _SMALLEST)
    weights = np.array(profile.prune_weights)
    relative = (weights / max(weights.mean(), np.finfo(float).tiny)).clip(min=_SMALLEST)
    return np.stack([np.log(inner / (1.0 - inner)), np.log(relative)])


def lambdas_of(parameters: FloatArray) -> FloatArray:
    """Lambdas (num_layers,) within (0, 1)."""
    values: FloatArray = 1.0 / (1.0 + np.exp(-parameters[0]))
    return values


def profile_of(parameters: FloatArray) -> Profile:
    """The profile `tuned` as it is served: lambdas in hundredths, prune weights of mean 1."""
    lambdas = np.round(lambdas_of(parameters) * _LAMBDA_STEPS) / _LAMBDA_STEPS
    weights = np.exp(parameters[1] - parameters[1].max())
    rounded = [float(f"{weight:.{_WEIGHT_DIGITS}g}") for weight in weights / weights.mean()]
    return Profile(TUNED, tuple(rounded), tuple(lambdas.tolist()))


def soft_budgets(parameters: FloatArray, density: float, intermediate_size: int) -> tuple[FloatArray, FloatArray]:
    """Kept neurons of each layer as real numbers (num_layers,), and their derivatives by the logarithms of the prune
    weights, (num_layers, num_layers), [l, j] of layer l's by j's.

    As `budget.layer_budgets` before it rounds. Every column of the derivatives sums to zero: the total is fixed.
    """
    weights, cap = np.exp(parameters[1] - parameters[1].max()), float(intermediate_size - 1)
    total = min((1.0 - density) * len(weights) * intermediate_size, cap * len(weights))
    is_open = np.ones(len(weights), bool)
    while True:
        given = weights * is_open
        rest = total - cap * np.count_nonzero(~is_open)
        pruned = np.where(is_open, rest * given / max(given.sum(), np.finfo(float).tiny), cap)
        if not (pruned[is_open] > cap).any():
            break
        is_open &= pruned <= cap
    moving = pruned * is_open
    slopes = np.outer(moving, moving) / max(moving.sum(), np.finfo(float).tiny) - np.diag(moving)
    return intermediate_size - pruned, slopes
