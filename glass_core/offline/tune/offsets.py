"""What is learned: how far each layer's thresholds lie from the measured table's, as logarithms.

log threshold(s) = log of the table's + offset + slope * x(s), with x from -1 at the smallest tuned sparsity to 1 at the
largest and constant beyond: two numbers per stage and layer serve every sparsity of the table. The table to start from
has one threshold for all layers and stages, on scores that `importance` makes comparable.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glass_core.sparsity.refinement import STAGES
from glass_core.sparsity.refinement_table import RefinementTable

FloatArray = npt.NDArray[np.float64]

NUM_KINDS = 2 * len(STAGES)  # offset and slope of every stage, stage after stage


def no_offsets(num_layers: int) -> FloatArray:
    """The table as it is: (NUM_KINDS, num_layers) zeros."""
    return np.zeros((NUM_KINDS, num_layers))


def place(sparsity: float, sparsities: Sequence[float]) -> float:
    """x(s), within -1 … 1."""
    low, high = sparsities[0], sparsities[-1]
    return float(np.clip(2.0 * (sparsity - low) / (high - low) - 1.0, -1.0, 1.0))


def log_thresholds(table: RefinementTable, offsets: FloatArray, sparsity: float, x: float) -> FloatArray:
    """Logarithms (stages, num_layers) of the thresholds at a sparsity; a threshold of 0 stays 0 (-inf)."""
    with np.errstate(divide="ignore"):
        base: FloatArray = np.log(table.thresholds_at(sparsity).astype(np.float64))
    return base + offsets[0::2] + x * offsets[1::2]


def chain(gradients: FloatArray, x: float) -> FloatArray:
    """Gradients (n, stages, num_layers) on logarithms at x as gradients (n, NUM_KINDS, num_layers) on the offsets."""
    return np.stack([gradients, x * gradients], axis=2).reshape(len(gradients), NUM_KINDS, -1)


def square_chain(curvatures: FloatArray, x: float) -> FloatArray:
    """Second derivatives (n, stages, num_layers) for the logarithms at x as those (n, NUM_KINDS, num_layers) for the
    offsets."""
    squares: FloatArray = chain(curvatures, x) * np.tile([1.0, x], len(STAGES))[:, None]
    return squares
