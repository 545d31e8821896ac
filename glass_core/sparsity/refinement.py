"""Refinement: token-level choice of what is read, by thresholds on scores of what is already known.

The cascade of one token in layer l, x being the FFN's normed input (RMSNorm's output):

1. inputs x_i with |x_i| * weights.inputs[i] >= scale * threshold are kept, u = up_proj of these alone: of up_proj the
   columns of the others are not read;
2. neurons of the plan's pool with |u_j| * weights.up[j] >= scale * threshold are kept for the gate (all inputs),
   z_j = act(g_j) * u_j;
3. of those, neurons with |z_j| * weights.down[j] >= scale * threshold reach down_proj; all others contribute exactly
   nothing.

A token's FFN reads are (num_inputs / hidden_size + (num_gate + num_down) / m) / 3. Skipping inputs (as in TEAL, arXiv
2408.14690) replaces reading all of up_proj first: a third of the reads bought nothing but scores.
"""

from dataclasses import dataclass

import numpy as np

from glass_core.errors import ConfigurationError
from glass_core.sparsity.local_stats import FloatArray

# In the order of computing, which is that of threshold arrays.
STAGES = ("inputs", "up", "down")


@dataclass(frozen=True, slots=True, eq=False)
class ScoreWeights:
    """What |x|, |u| and |z| are multiplied by: estimates of what the layer's output, or the loss, loses with them.

    `inputs`: float32 (num_layers, hidden_size); `up`, `down`: float32 (num_layers, m); C-contiguous. An input's column
    of up_proj is m weights, a neuron's row of gate_proj or column of down_proj hidden_size: scores of inputs are in
    proportion, so that one threshold means one price per weight. Raises ConfigurationError for other shapes, types or
    values.
    """

    inputs: FloatArray
    up: FloatArray
    down: FloatArray

    def __post_init__(self) -> None:
        for name in STAGES:
            values = getattr(self, name)
            if values.ndim != 2 or len(values) != len(self.up):
                raise ConfigurationError(f"score weights: {name} must be (layers, size), got {values.shape}")
            check_values(f"score weights: {name}", values, values.shape)
        if self.down.shape != self.up.shape:
            raise ConfigurationError(f"score weights: up has shape {self.up.shape}, down {self.down.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Scores and thresholds of a refined plan; plans share the arrays, which nobody writes to.

    `thresholds`: float32 (len(STAGES), num_layers), at scale 1; 0 keeps all. `reads`: the promised share of FFN
    weights read, in (0, 1]. Raises ConfigurationError for other shapes, types or values.
    """

    weights: ScoreWeights
    thresholds: FloatArray
    reads: float

    def __post_init__(self) -> None:
        if not 0.0 < self.reads <= 1.0:
            raise ConfigurationError(f"refinement: reads must lie in (0, 1], got {self.reads}")
        check_values("refinement: thresholds", self.thresholds, (len(STAGES), len(self.weights.up)))


def check_values(name: str, values: FloatArray, shape: tuple[int, ...]) -> None:
    """Raises ConfigurationError unless these are finite non-negative contiguous float32 of this shape."""
    if values.shape != shape or values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ConfigurationError(
            f"{name} must be contiguous float32 of shape {shape}, got {values.dtype} of {values.shape}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ConfigurationError(f"{name} must be finite and not negative")
