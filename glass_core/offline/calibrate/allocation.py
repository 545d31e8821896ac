"""Shares of the cascade per layer: who keeps how much at each stage, so that the predicted damage is least.

A layer that keeps a share a of its inputs for up_proj, b of its gate rows and c of its down columns reads
(a + b + c) / 3 of its weights. Its damage is taken to be sensitivity * (error(a) + error(b, c)) / error of the static
half whose damage the sensitivity is: errors of skipped inputs and of skipped neurons add up, and so do damages of
layers. Under a fixed mean of the reads, every layer's best a and best (b, c) minimize damage + price * reads, each by
itself, for one price common to all (Lagrange); the price is found by bisection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glass_core.errors import ConfigurationError

FloatArray = npt.NDArray[np.float64]
Choice = npt.NDArray[np.intp]

# Shares of inputs that up_proj keeps, of neurons that the gate keeps, and of these those that reach down: closer where
# errors change fast.
INPUT_SHARES = (0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
UP_SHARES = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DOWN_RATIOS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# points of the finer grid per interval of the measured one
_REFINEMENT = 8
_NUM_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class LayerShares:
    """Shares of all (layer, token) inputs kept for up, and of neurons kept for the gate and for down, each
    (num_layers,): 0 < inputs <= 1, 0 < down <= up <= 1."""

    inputs: FloatArray
    up: FloatArray
    down: FloatArray

    @property
    def reads(self) -> float:
        """Mean share of the FFN's weights that is read."""
        return float(np.mean((self.inputs + self.up + self.down) / 3.0))


@dataclass(frozen=True, slots=True)
class LocalErrors:
    """At the grids' points: `inputs` (num_layers, len(INPUT_SHARES)) of skipping inputs of up_proj alone, `neurons`
    (num_layers, len(UP_SHARES), len(DOWN_RATIOS)) of skipping neurons alone."""

    inputs: FloatArray
    neurons: FloatArray


@dataclass(frozen=True, slots=True)
class _Options:
    """What every layer may choose from: damage of each point (num_layers, n), and its reads (n,)."""

    damage: FloatArray
    cost: FloatArray

    def best(self, price: float) -> Choice:
        best: Choice = (self.damage + price * self.cost).argmin(axis=1)
        return best

    def always(self, point: np.intp) -> Choice:
        return np.full(len(self.damage), point)


def allocate(errors: LocalErrors, weights: FloatArray, reads: float) -> LayerShares:
    """The shares of least predicted damage whose mean reads are exactly `reads`.

    `weights` (num_layers,): damage per unit of error. Raises ConfigurationError when `reads` lies outside what the
    grids can reach.
    """
    input_axis, up_axis, ratio_axis = _finer(INPUT_SHARES), _finer(UP_SHARES), _finer(DOWN_RATIOS)
    up = np.repeat(up_axis, len(ratio_axis))
    down = up * np.tile(ratio_axis, len(up_axis))
    of_inputs = np.stack([np.interp(input_axis, INPUT_SHARES, layer) for layer in errors.inputs])
    of_neurons = np.stack([_interpolated(layer, up_axis, ratio_axis).ravel() for layer in errors.neurons])
    options = (
        _Options(weights[:, None] * of_inputs, input_axis / 3.0),
        _Options(weights[:, None] * of_neurons, (up + down) / 3.0),
    )
    few, many = _bracket(options, reads)
    shares = [LayerShares(input_axis[best], up[neurons], down[neurons]) for best, neurons in (few, many)]
    return _mix(shares[0], shares[1], reads)


def _bracket(options: Sequence[_Options], reads: float) -> tuple[list[Choice], list[Choice]]:
    """Best points of the layers, one choice per kind of options, at two neighboring prices: reading at most `reads`,
    and at least."""
    least = sum(float(kind.cost.min()) for kind in options)
    if not least <= reads <= 1.0:
        raise ConfigurationError(f"refinement can read between {least:.3f} and 1 of the FFN, got {reads}")
    few = [kind.always(kind.cost.argmin()) for kind in options]
    many = [kind.always(kind.cost.argmax()) for kind in options]
    steepest = max(float(kind.damage.max() / np.ptp(kind.cost)) for kind in options)
    low, high = 0.0, 3.0 * steepest * len(few[0]) + 1.0
    for _ in range(_NUM_BISECTIONS):
        price = (low + high) / 2.0
        best = [kind.best(price) for kind in options]
        if sum(kind.cost[chosen].mean() for kind, chosen in zip(options, best, strict=True)) > reads:
            low, many = price, best
        else:
            high, few = price, best
    return few, many


def _mix(few: LayerShares, many: LayerShares, reads: float) -> LayerShares:
    """Between the two, where the mean reads are exactly `reads`: they are linear in the shares."""
    width = many.reads - few.reads
    part = (reads - few.reads) / width if width > 0 else 0.0
    part = min(max(part, 0.0), 1.0)
    return LayerShares(
        few.inputs + part * (many.inputs - few.inputs),
        few.up + part * (many.up - few.up),
        few.down + part * (many.down - few.down),
    )


def _finer(axis: tuple[float, ...]) -> FloatArray:
    places = np.linspace(0, len(axis) - 1, (len(axis) - 1) * _REFINEMENT + 1)
    return np.interp(places, np.arange(len(axis)), axis)


def _interpolated(errors: FloatArray, up_axis: FloatArray, ratio_axis: FloatArray) -> FloatArray:
    """Bilinear: (len(UP_SHARES), len(DOWN_RATIOS)) to (len(up_axis), len(ratio_axis))."""
    by_ratio = np.stack([np.interp(ratio_axis, DOWN_RATIOS, row) for row in errors])
    return np.stack([np.interp(up_axis, UP_SHARES, column) for column in by_ratio.T], axis=1)
