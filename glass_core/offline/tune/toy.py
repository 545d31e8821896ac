"""The two-objective problem on which ConicGrad, CAGrad and others are compared, and descent on it from many starts.

Source: appendix of arXiv 2502.00217 (after arXiv 2110.14048): above x2 = 0 each loss has a steep valley of its own,
where the gradients conflict; below it lie two bowls. Losses and gradients are written by hand, for all starts at once:
50,000 steps with automatic differentiation would take minutes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glass_core.offline.tune.cone import Floats

STARTS: Floats = np.array([(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)])
GLOBAL_MINIMUM = -10.104
"""of the mean loss, near (-5.7, -8.4)"""
NUM_STEPS = 50_000
LEARNING_RATE = 1e-3

# of the two losses, as columns: they differ in nothing else (the paper writes 0.5 (-x1 + 3) + 2 for 0.5 (-x1 + 7))
_SCALES = np.array([[0.1], [1.0]])
_CENTERS = np.array([[7.0], [-7.0]])
_SIGNS = np.array([[1.0], [-1.0]])
_CLAMP = 5e-6
_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8

Combine = Callable[[Floats], Floats]
"""Gram matrices, shape (starts, 2, 2) -> coefficients of the two gradients, shape (starts, 2)"""


class Descent(NamedTuple):
    """What became of every start."""

    points: Floats
    """positions, shape (steps + 1, starts, 2); the first are the starts"""
    losses: Floats
    """mean of the two losses there, shape (steps + 1, starts)"""

    def steps_to(self, level: float) -> NDArray[np.int64]:
        """Steps until the mean loss first was at most `level`, shape (starts,); -1 where it never was."""
        reached = self.losses <= level
        return np.where(reached.any(axis=0), reached.argmax(axis=0), -1)


def losses_and_gradients(points: Floats) -> tuple[Floats, Floats]:
    """Both losses, shape (2, n), and their gradients, shape (2, n, 2), at points of shape (n, 2).

    At a clamp's edge the gradient is that of the unclamped side (as PyTorch's `clamp` has it): else (0, 0), one of the
    starts, would have none.
    """
    x1, x2 = points[:, 0], points[:, 1]
    half = np.tanh(0.5 * x2)
    above, below = np.maximum(half, 0), np.maximum(-half, 0)
    valley, valley_slope1, valley_slope2 = _valleys(x1, np.tanh(x2))
    along1, along2 = x1 - _CENTERS, x2 + 8
    bowl = (along1 * along1 + 0.1 * along2 * along2) / 10 - 20
    fading = 0.5 * (1 - half * half) * ((half >= 0) * valley - (half <= 0) * bowl)
    gradients = np.empty((*valley.shape, 2))
    gradients[..., 0] = _SCALES * (valley_slope1 * above + along1 / 5 * below)
    gradients[..., 1] = _SCALES * (valley_slope2 * above + along2 / 50 * below + fading)
    return _SCALES * (valley * above + bowl * below), gradients


def descend(combine: Combine, num_steps: int = NUM_STEPS, stop_at: float = -np.inf, starts: Floats = STARTS) -> Descent:
    """Adam from all starts along the combined gradients; ends early once each has been at `stop_at` or lower."""
    points = np.empty((num_steps + 1, *starts.shape))
    mean_losses = np.empty((num_steps + 1, len(starts)))
    points[0] = starts
    adam = _Adam(starts.shape)
    lowest = np.full(len(starts), np.inf)
    for step in range(num_steps + 1):
        losses, gradients = losses_and_gradients(points[step])
        mean_losses[step] = losses.mean(axis=0)
        np.minimum(lowest, mean_losses[step], out=lowest)
        if step == num_steps or lowest.max() <= stop_at:
            break
        jacobians = gradients.swapaxes(0, 1)
        coefficients = combine(jacobians @ jacobians.swapaxes(1, 2))
        points[step + 1] = points[step] - adam.step((coefficients[:, None] @ jacobians)[:, 0])
    return Descent(points[: step + 1], mean_losses[: step + 1])


class _Adam:
    """Kingma and Ba, arXiv 1412.6980, algorithm 1, with the usual constants."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._mean = np.zeros(shape)
        self._square = np.zeros(shape)
        self._num_steps = 0

    def step(self, gradient: Floats) -> Floats:
        """What to subtract."""
        self._num_steps += 1
        self._mean += (1 - _BETAS[0]) * (gradient - self._mean)
        self._square += (1 - _BETAS[1]) * (gradient * gradient - self._square)
        mean = self._mean / (1 - _BETAS[0] ** self._num_steps)
        square = self._square / (1 - _BETAS[1] ** self._num_steps)
        change: Floats = LEARNING_RATE * mean / (np.sqrt(square) + _ADAM_EPSILON)
        return change


def _valleys(x1: Floats, tanh: Floats) -> tuple[Floats, Floats, Floats]:
    """log(max(|distance to the valley|, 5e-6)) + 6 and its slopes along x1 and x2, of both losses, shapes (2, n)."""
    distance = _SIGNS * tanh - 0.5 * (x1 + _CENTERS)
    size = np.abs(distance)
    clamped = size < _CLAMP
    inverse = np.where(clamped, 0, 1 / np.where(clamped, 1, distance))
    return np.log(np.maximum(size, _CLAMP)) + 6, -0.5 * inverse, _SIGNS * (1 - tanh * tanh) * inverse
