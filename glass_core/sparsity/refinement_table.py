"""RefinementTable: the thresholds of the cascade at measured sparsities, interpolated for all between."""

from dataclasses import dataclass

import numpy as np

from glass_core.errors import ConfigurationError, InvalidRequestError
from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.refinement import STAGES, ScoreWeights, check_values

# sparsities are stored as float32: 0.6 must still be found in a table that ends at 0.6
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class RefinementTable:
    """What was measured for one profile.

    `sparsities` float32 (P,): ascending, in (0, 1); `thresholds` float32 (P, len(STAGES), num_layers): those under
    which the text they were measured on read 1 - sparsity of the FFN's weights, by scores with these `weights`.
    Raises ConfigurationError for other shapes, types or values.
    """

    sparsities: FloatArray
    thresholds: FloatArray
    weights: ScoreWeights

    def __post_init__(self) -> None:
        num_points = self.sparsities.size
        check_values("refinement table: sparsities", self.sparsities, (max(num_points, 1),))
        shape = (num_points, len(STAGES), self.num_layers)
        check_values("refinement table: thresholds", self.thresholds, shape)
        steps = np.diff(self.sparsities, prepend=np.float32(0.0))
        if (steps <= 0).any() or self.sparsities[-1] >= 1:
            raise ConfigurationError(f"refinement table: sparsities must ascend within (0, 1), got {self.sparsities}")

    @property
    def num_layers(self) -> int:
        return self.weights.num_layers

    @property
    def max_sparsity(self) -> float:
        """The largest sparsity that thresholds are known for."""
        return round(float(self.sparsities[-1]), 6)

    def check(self, sparsity: float) -> None:
        """Raises InvalidRequestError when the table does not reach this sparsity."""
        if not 0.0 <= sparsity <= self.max_sparsity + _ROUNDING:
            raise InvalidRequestError(
                f"refinement is measured for glass_sparsity from 0 to {self.max_sparsity:g}, got {sparsity}; "
                "ask for less, or for glass_refine false",
                param="glass_sparsity",
            )

    def thresholds_at(self, sparsity: float) -> FloatArray:
        """Thresholds (len(STAGES), num_layers): linear between the measured points and from 0. Raises as `check`."""
        self.check(sparsity)
        points = np.concatenate(([0.0], self.sparsities))
        after = min(int(np.searchsorted(points, sparsity)), len(points) - 1)
        before = max(after - 1, 0)
        width = points[after] - points[before]
        share = min((sparsity - points[before]) / width, 1.0) if width else 0.0
        padded = np.concatenate((np.zeros((1, *self.thresholds.shape[1:])), self.thresholds))
        mixed: FloatArray = ((1.0 - share) * padded[before] + share * padded[after]).astype(np.float32)
        return mixed
