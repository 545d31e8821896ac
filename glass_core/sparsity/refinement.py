"""Refinement: token-level choice of neurons inside a plan's pool, by thresholds on scores of what was already read.

The cascade of one token in layer l: u_j of the pool's up rows; neurons with |u_j| * up_weights >= scale * up_threshold
are kept for the gate, z_j = act(g_j) * u_j; of those, neurons with |z_j| * down_norms >= scale * down_threshold reach
down_proj; all others contribute exactly nothing. A token's FFN reads are (num_up + num_gate + num_down) / (3 m).
"""

from dataclasses import dataclass

import numpy as np

from glass_core.errors import ConfigurationError
from glass_core.sparsity.local_stats import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Scores and thresholds of a refined plan; plans share the arrays, which nobody writes to.

    `up_weights`, `down_norms`: float32 (num_layers, m), C-contiguous: what |u| and |z| are multiplied by, an estimate
    of the rest of a neuron's output: RMS(act(g)) * ||down[:, j]||, and ||down[:, j]||; or a profile's own. Thresholds
    `up_thresholds`, `down_thresholds`: float32 (num_layers,), at scale 1; 0 keeps all. `reads`: the promised share of
    FFN weights read, in (0, 1]. Raises ConfigurationError for other shapes, types or values.
    """

    up_weights: FloatArray
    down_norms: FloatArray
    up_thresholds: FloatArray
    down_thresholds: FloatArray
    reads: float

    def __post_init__(self) -> None:
        if not 0.0 < self.reads <= 1.0:
            raise ConfigurationError(f"refinement: reads must lie in (0, 1], got {self.reads}")
        if self.up_weights.ndim != 2:
            raise ConfigurationError(f"refinement: up_weights must be (layers, neurons), got {self.up_weights.shape}")
        shape = self.up_weights.shape
        _check("up_weights", self.up_weights, shape)
        _check("down_norms", self.down_norms, shape)
        _check("up_thresholds", self.up_thresholds, shape[:1])
        _check("down_thresholds", self.down_thresholds, shape[:1])


def _check(name: str, values: FloatArray, shape: tuple[int, ...]) -> None:
    if values.shape != shape or values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ConfigurationError(
            f"refinement: {name} must be contiguous float32 of shape {shape}, got {values.dtype} of {values.shape}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ConfigurationError(f"refinement: {name} must be finite and not negative")
