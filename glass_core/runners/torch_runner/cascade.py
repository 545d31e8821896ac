"""The cascade of `sparsity/refinement.py` on one layer's tokens, as masked dense products.

A reference, hence nothing is skipped; what a token keeps says what it needs to read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.models.spec import Activation
from glass_core.runners.torch_runner.ffn import gate_alone, up_alone
from glass_core.runners.torch_runner.weights import FfnWeights
from glass_core.sparsity.refinement import STAGES, ScoreWeights


@dataclass(frozen=True, slots=True)
class StageTensors:
    """Something per stage of the cascade, on the model's device."""

    inputs: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def of_weights(cls, weights: ScoreWeights, device: torch.device) -> "StageTensors":
        """What scores are weighted with, (num_layers, size) each."""
        return cls(*(torch.from_numpy(getattr(weights, stage)).to(device) for stage in STAGES))

    def of_layer(self, layer: int) -> "StageTensors":
        return StageTensors(self.inputs[layer], self.up[layer], self.down[layer])

    def of_neurons(self, neurons: Tensor) -> "StageTensors":
        """One layer's weights where only these of its neurons are there."""
        return StageTensors(self.inputs, self.up[neurons], self.down[neurons])


@dataclass(frozen=True, slots=True)
class Kept:
    """What each token keeps, bool: inputs of up_proj (n, hidden), neurons for the gate and for down_proj (n, k)."""

    inputs: Tensor
    gate: Tensor
    down: Tensor

    def num_weights(self, intermediate_size: int) -> Tensor:
        """Weights that each token reads, (n,): an input's column of up_proj is whole, whatever the pool."""
        neurons = self.gate.sum(dim=-1) + self.down.sum(dim=-1)
        return self.inputs.sum(dim=-1) * intermediate_size + neurons * self.inputs.shape[-1]

    def union(self) -> "Kept":
        """What any of the tokens keeps, as one token."""
        return Kept(*(part.any(dim=0, keepdim=True) for part in (self.inputs, self.gate, self.down)))


def run_cascade(
    weights: FfnWeights, activation: Activation, x: Tensor, scores: StageTensors, thresholds: Tensor
) -> tuple[Tensor, Kept]:
    """z (n, k) of x (n, hidden), 0 where down_proj is not read, and what was kept.

    `scores`: the layer's weights of scores, of the neurons in `weights`, for all tokens or for each; `thresholds`
    (len(STAGES), n or 1).
    """
    inputs = reaches(x, scores.inputs, thresholds[0])
    up = up_alone(weights, torch.where(inputs, x, 0.0))
    gated = reaches(up, scores.up, thresholds[1])
    z = gate_alone(weights, activation, x) * up
    kept = gated & reaches(z, scores.down, thresholds[2])
    return torch.where(kept, z, 0.0), Kept(inputs, gated, kept)


def reaches(values: Tensor, weights: Tensor, thresholds: Tensor) -> Tensor:
    """Whether each of `values` (n, k), weighted by (k,) or (n, k), scores at least its row's threshold (n or 1,);
    float32 whatever the dtype."""
    return values.float().abs() * weights >= thresholds[:, None]
