"""Shares of the cascade per layer: who keeps how much at each stage, so that the predicted damage is least.

A layer that keeps a share a of its inputs, for gate_proj and up_proj, and b of its down columns reads (2 a + b) / 3 of
its weights. Its damage is taken to be sensitivity * (error(a) + error(b)) / error of the static half whose damage the
sensitivity is: errors of skipped inputs and of skipped columns add up, and so do damages of layers. Under a fixed mean
of the reads, every layer's best a and best b minimize damage + price * reads, each by itself, for one price common to
all (Lagrange); the price is found by bisection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glass_core.errors import ConfigurationError

FloatArray = npt.NDArray[np.float64]
Choice = npt.NDArray[np.intp]

# Shares of inputs, and of neurons that reach down: closer where errors change fast.
INPUT_SHARES = (0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DOWN_SHARES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# points of the finer grid per interval of the measured one
_REFINEMENT = 8
_NUM_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class LayerShares:
    """Shares of all (layer, token) inputs kept for gate and up, and of neurons that reach down, each (num_layers,), in
    (0, 1]."""

    inputs: FloatArray
    down: FloatArray

    @property
    def reads(self) -> float:
        """Mean share of the FFN's weights that is read."""
        return float(np.mean((2.0 * self.inputs + self.down) / 3.0))


@dataclass(frozen=True, slots=True)
class LocalErrors:
    """At the grids' points: `inputs` (num_layers, len(INPUT_SHARES)) of skipping inputs alone, `down` (num_layers,
    len(DOWN_SHARES)) of skipping down columns alone."""

    inputs: FloatArray
    down: FloatArray


@dataclass(frozen=True, slots=True)
class _Options:
    """What every layer may choose from at one stage: shares (n,), their reads (n,), and the damage (num_layers, n)."""

    shares: FloatArray
    cost: FloatArray
    damage: FloatArray

    @classmethod
    def between(cls, grid: tuple[float, ...], part: float, damage: FloatArray) -> "_Options":
        """On a finer grid than the measured one (damage (num_layers, len(grid))), by lines. `part`: the stage's of the
        FFN's weights."""
        places = np.linspace(0, len(grid) - 1, (len(grid) - 1) * _REFINEMENT + 1)
        shares = np.interp(places, np.arange(len(grid)), grid)
        return cls(shares, part * shares, np.stack([np.interp(shares, grid, layer) for layer in damage]))

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
    options = (
        _Options.between(INPUT_SHARES, 2.0 / 3.0, weights[:, None] * errors.inputs),
        _Options.between(DOWN_SHARES, 1.0 / 3.0, weights[:, None] * errors.down),
    )
    few, many = (
        LayerShares(*(kind.shares[chosen] for kind, chosen in zip(options, best, strict=True)))
        for best in _bracket(options, reads)
    )
    return _mix(few, many, reads)


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
    return LayerShares(few.inputs + part * (many.inputs - few.inputs), few.down + part * (many.down - few.down))
