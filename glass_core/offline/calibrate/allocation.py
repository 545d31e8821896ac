"""Shares of the cascade per layer: who keeps how much at each stage, so that the predicted damage is least.

A layer that keeps a share a of its gate rows and b of its down columns reads (1 + a + b) / 3 of its weights. Its damage
is taken to be sensitivity * error(a, b) / error of the static half whose damage the sensitivity is, and damages of
layers to add up. Under a fixed mean of the reads, the best point of every layer minimizes damage + price * reads for
one price common to all (Lagrange); the price is found by bisection.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glass_core.errors import ConfigurationError

FloatArray = npt.NDArray[np.float64]

# Shares of neurons that the gate keeps, and of these those that reach down: closer where errors change fast.
UP_SHARES = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DOWN_RATIOS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# points of the finer grid per interval of the measured one
_REFINEMENT = 8
_NUM_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class LayerShares:
    """Shares of all (layer, token) neurons kept for the gate and for down, each (num_layers,), 0 < down <= up <= 1."""

    up: FloatArray
    down: FloatArray

    @property
    def reads(self) -> float:
        """Mean share of the FFN's weights that is read."""
        return float(np.mean((1.0 + self.up + self.down) / 3.0))


def allocate(errors: FloatArray, weights: FloatArray, reads: float) -> LayerShares:
    """The shares of least predicted damage whose mean reads are exactly `reads`.

    `errors` (num_layers, len(UP_SHARES), len(DOWN_RATIOS)): local errors at the grid's points; `weights` (num_layers,):
    damage per unit of error. Raises ConfigurationError when `reads` lies outside what the grid can reach.
    """
    up_axis, ratio_axis = _finer(UP_SHARES), _finer(DOWN_RATIOS)
    up, down = np.meshgrid(up_axis, ratio_axis, indexing="ij")
    down = up * down
    cost = (1.0 + up + down) / 3.0
    if not cost.min() <= reads <= 1.0:
        raise ConfigurationError(f"refinement can read between {cost.min():.3f} and 1 of the FFN, got {reads}")
    damage = weights[:, None, None] * np.stack([_interpolated(layer, up_axis, ratio_axis) for layer in errors])
    few, many = _bracket(damage, cost, reads)
    shares = [LayerShares(up.ravel()[best], down.ravel()[best]) for best in (few, many)]
    return _mix(shares[0], shares[1], reads)


def _bracket(damage: FloatArray, cost: FloatArray, reads: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Best points of the layers (flat indices) at two neighboring prices: reading at most `reads`, and at least."""
    flat, flat_cost = damage.reshape(len(damage), -1), cost.ravel()
    few = np.full(len(damage), flat_cost.argmin())
    many = np.full(len(damage), flat_cost.argmax())
    low, high = 0.0, 3.0 * float(flat.max()) / float(cost.max() - cost.min()) * len(damage) + 1.0
    for _ in range(_NUM_BISECTIONS):
        price = (low + high) / 2.0
        best = (flat + price * flat_cost).argmin(axis=1)
        if flat_cost[best].mean() > reads:
            low, many = price, best
        else:
            high, few = price, best
    return few, many


def _mix(few: LayerShares, many: LayerShares, reads: float) -> LayerShares:
    """Between the two, where the mean reads are exactly `reads`: they are linear in the shares."""
    width = many.reads - few.reads
    part = (reads - few.reads) / width if width > 0 else 0.0
    part = min(max(part, 0.0), 1.0)
    return LayerShares(few.up + part * (many.up - few.up), few.down + part * (many.down - few.down))


def _finer(axis: tuple[float, ...]) -> FloatArray:
    places = np.linspace(0, len(axis) - 1, (len(axis) - 1) * _REFINEMENT + 1)
    return np.interp(places, np.arange(len(axis)), axis)


def _interpolated(errors: FloatArray, up_axis: FloatArray, ratio_axis: FloatArray) -> FloatArray:
    """Bilinear: (len(UP_SHARES), len(DOWN_RATIOS)) to (len(up_axis), len(ratio_axis))."""
    by_ratio = np.stack([np.interp(ratio_axis, DOWN_RATIOS, row) for row in errors])
    return np.stack([np.interp(up_axis, UP_SHARES, column) for column in by_ratio.T], axis=1)
