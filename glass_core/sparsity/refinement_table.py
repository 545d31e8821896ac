"""RefinementTable: the thresholds of the cascade at measured sparsities, interpolated for all between."""

from dataclasses import dataclass

import numpy as np

from glass_core.errors import ConfigurationError, InvalidRequestError
from glass_core.sparsity.local_stats import FloatArray

# sparsities are stored as float32: 0.6 must still be found in a table that ends at 0.6
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class RefinementTable:
    """What `glass calibrate` measured for one profile.

    `sparsities` float32 (P,): ascending, in (0, 1); `up_thresholds`, `down_thresholds` float32 (P, num_layers): those
    under which the calibration text read 1 - sparsity of the FFN's weights. `up_weights`, `down_weights` float32
    (num_layers, m): what |u| and |z| count for in the scores that the thresholds are for; None = RMS(act(g)) times the
    norm of the neuron's down column, and that norm.
    Raises ConfigurationError for other shapes, types or values.
    """

    sparsities: FloatArray
    up_thresholds: FloatArray
    down_thresholds: FloatArray
    up_weights: FloatArray | None = None
    down_weights: FloatArray | None = None

    def __post_init__(self) -> None:
        shape = self.up_thresholds.shape
        if len(shape) != 2 or self.down_thresholds.shape != shape or self.sparsities.shape != shape[:1] or not shape[0]:
            raise ConfigurationError(
                "a refinement table needs (points,), (points, layers) and (points, layers), got "
                f"{self.sparsities.shape}, {shape} and {self.down_thresholds.shape}"
            )
        for name in ("sparsities", "up_thresholds", "down_thresholds", "up_weights", "down_weights"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.dtype != np.float32 or not np.isfinite(values).all() or (values < 0).any():
                raise ConfigurationError(f"refinement table: {name} must be finite float32, not negative")
        self._check_weights()
        steps = np.diff(self.sparsities, prepend=np.float32(0.0))
        if (steps <= 0).any() or self.sparsities[-1] >= 1:
            raise ConfigurationError(f"refinement table: sparsities must ascend within (0, 1), got {self.sparsities}")

    def _check_weights(self) -> None:
        found = [None if values is None else values.shape for values in (self.up_weights, self.down_weights)]
        if found == [None, None]:
            return
        shape = found[0] or ()
        if found[0] != found[1] or len(shape) != 2 or shape[0] != self.num_layers:
            raise ConfigurationError(
                f"refinement table: expected up_weights and down_weights (layers, neurons), or neither; got {found}"
            )

    @property
    def num_layers(self) -> int:
        return int(self.up_thresholds.shape[1])

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

    def thresholds(self, sparsity: float) -> tuple[FloatArray, FloatArray]:
        """(up, down) thresholds of all layers, each (num_layers,): linear between the measured points and from 0.

        Raises as `check`.
        """
        self.check(sparsity)
        points = np.concatenate(([0.0], self.sparsities))
        after = min(int(np.searchsorted(points, sparsity)), len(points) - 1)
        before = max(after - 1, 0)
        width = points[after] - points[before]
        share = min((sparsity - points[before]) / width, 1.0) if width else 0.0
        return _between(self.up_thresholds, before, after, share), _between(self.down_thresholds, before, after, share)


def _between(values: FloatArray, before: int, after: int, share: float) -> FloatArray:
    """Row `before` and `after` of the values with a row of zeros put first, mixed."""
    padded = np.concatenate((np.zeros((1, values.shape[1])), values))
    mixed: FloatArray = ((1.0 - share) * padded[before] + share * padded[after]).astype(np.float32)
    return mixed
