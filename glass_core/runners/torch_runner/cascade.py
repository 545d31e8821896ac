"""The cascade of `sparsity/refinement.py` on one layer's tokens, as masked dense products.

A reference, hence nothing is skipped; what a token keeps says what it needs to read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.models.spec import Activation
from glass_core.runners.torch_runner.ffn import gate_and_up
from glass_core.runners.torch_runner.weights import FfnWeights
from glass_core.sparsity.refinement import STAGES, ScoreWeights


@dataclass(frozen=True, slots=True)
class StageTensors:
    """Something per stage of the cascade, on the model's device."""

    inputs: Tensor
    down: Tensor

    @classmethod
    def of_weights(cls, weights: ScoreWeights, device: torch.device) -> "StageTensors":
        """What scores are weighted with, (num_layers, size) each."""
        return cls(*(torch.from_numpy(getattr(weights, stage)).to(device) for stage in STAGES))

    def of_layer(self, layer: int) -> "StageTensors":
        return StageTensors(self.inputs[layer], self.down[layer])

    def of_neurons(self, neurons: Tensor) -> "StageTensors":
        """One layer's weights where only these of its neurons are there."""
        return StageTensors(self.inputs, self.down[neurons])


@dataclass(frozen=True, slots=True)
class Kept:
    """What each token keeps, bool: inputs of gate_proj and up_proj (n, hidden), neurons for down_proj (n, k)."""

    inputs: Tensor
    down: Tensor

    def num_weights(self, intermediate_size: int) -> Tensor:
        """Weights that each token reads, (n,): an input's columns are whole, whatever the pool."""
        return self.inputs.sum(dim=-1) * (2 * intermediate_size) + self.down.sum(dim=-1) * self.inputs.shape[-1]

    def union(self) -> "Kept":
        """What any of the tokens keeps, as one token."""
        return Kept(self.inputs.any(dim=0, keepdim=True), self.down.any(dim=0, keepdim=True))


def run_cascade(
    weights: FfnWeights, activation: Activation, x: Tensor, scores: StageTensors, thresholds: Tensor
) -> tuple[Tensor, Kept]:
    """z (n, k) of x (n, hidden), 0 where down_proj is not read, and what was kept.

    `scores`: the layer's weights of scores, of the neurons in `weights`, for all tokens or for each; `thresholds`
    (len(STAGES), n or 1).
    """
    inputs = reaches(x, scores.inputs, thresholds[0])
    gate, up = gate_and_up(weights, activation, torch.where(inputs, x, 0.0))
    z = gate * up
    kept = reaches(z, scores.down, thresholds[1])
    return torch.where(kept, z, 0.0), Kept(inputs, kept)


def reaches(values: Tensor, weights: Tensor, thresholds: Tensor) -> Tensor:
    """Whether each of `values` (n, k), weighted by (k,) or (n, k), scores at least its row's threshold (n or 1,);
    float32 whatever the dtype."""
    return values.float().abs() * weights >= thresholds[:, None]
