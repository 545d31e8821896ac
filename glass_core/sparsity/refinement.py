"""Refinement: token-level choice of what is read, by thresholds on scores of what is already known.

The cascade of one token in layer l, x being the FFN's normed input (RMSNorm's output):

1. inputs x_i with |x_i| * weights.inputs[i] >= scale * threshold are kept, u = up_proj x and g = gate_proj x of these
   alone: of both matrices the columns of the others are not read;
2. neurons of the plan's pool with |z_j| * weights.down[j] >= scale * threshold, z_j = act(g_j) * u_j, reach down_proj;
   all others contribute exactly nothing.

A token's FFN reads are (2 * num_inputs / hidden_size + num_down / m) / 3. Gate and up skip inputs (as in TEAL, arXiv
2408.14690), not neurons: an input's columns of both are one long piece of memory, which gathers well, where gate rows
chosen by |u| do not.
"""

from dataclasses import dataclass

import numpy as np

from glass_core.errors import ConfigurationError
from glass_core.sparsity.local_stats import FloatArray

# In the order of computing, which is that of threshold arrays.
STAGES = ("inputs", "down")


@dataclass(frozen=True, slots=True, eq=False)
class ScoreWeights:
    """What |x| and |z| are multiplied by: estimates of what the layer's output, or the loss, loses with them.

    `inputs`: float32 (num_layers, hidden_size); `down`: float32 (num_layers, m); C-contiguous. An input's columns of
    gate_proj and up_proj are 2 * m weights, a neuron's column of down_proj hidden_size: scores of inputs are in
    proportion, so that one threshold means one price per weight. Raises ConfigurationError for other shapes, types or
    values.
    """

    inputs: FloatArray
    down: FloatArray

    def __post_init__(self) -> None:
        for name in STAGES:
            values = getattr(self, name)
            if values.ndim != 2 or len(values) != len(self.down):
                raise ConfigurationError(f"score weights: {name} must be (layers, size), got {values.shape}")
            check_values(f"score weights: {name}", values, values.shape)

    @property
    def num_layers(self) -> int:
        return len(self.down)


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
        check_values("refinement: thresholds", self.thresholds, (len(STAGES), self.weights.num_layers))


def check_values(name: str, values: FloatArray, shape: tuple[int, ...]) -> None:
    """Raises ConfigurationError unless these are finite non-negative contiguous float32 of this shape."""
    if values.shape != shape or values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ConfigurationError(
            f"{name} must be contiguous float32 of shape {shape}, got {values.dtype} of {values.shape}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ConfigurationError(f"{name} must be finite and not negative")
