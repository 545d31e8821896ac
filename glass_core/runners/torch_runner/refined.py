"""The FFN of one refined row: the cascade of `sparsity/refinement.py`, as a masked dense product over the pool.

A reference, hence nothing is skipped; what is counted is what the cascade needs to read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.runners.torch_runner.ffn import ffn_output, gate_and_up
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.plan import NeuronIndices
from glass_core.sparsity.refinement import Refinement


class RefinedFfn:
    """The refined FFN of one row's tokens in one step, counting as it goes. `ffn` is an `Ffn`.

    `num_products` are the weight rows that its tokens multiply, summed over tokens, layers and matrices; `num_rows`
    the distinct ones among them.
    """

    def __init__(
        self, spec: ModelSpec, views: PackedViews, refinement: Refinement, num_tokens: int, scales: Sequence[float]
    ) -> None:
        """`scales`: one factor per token on both thresholds, empty = 1 for all."""
        self._spec = spec
        self._views = views
        self._refinement = refinement
        self._num_tokens = num_tokens
        self._scales = torch.tensor(scales or (1.0,) * num_tokens, dtype=torch.float32)[:, None]
        self.num_products = 0
        self.num_rows = 0

    @property
    def reads(self) -> float:
        """Mean share of FFN weights that a token reads."""
        return self.num_products / (3 * self._num_tokens * self._spec.num_layers * self._spec.intermediate_size)

    def ffn(self, layer: int, x: Tensor) -> Tensor:
        """Refined FFN output (n, hidden) of x (n, hidden)."""
        weights, pool, refinement = self._views.weights(layer), self._views.plan.neurons[layer], self._refinement
        gate, up = gate_and_up(weights, self._spec.activation, x)
        gated = self._kept(up, _pooled(refinement.up_weights[layer], pool), float(refinement.up_thresholds[layer]))
        z = gate * up
        norms = _pooled(refinement.down_norms[layer], pool)
        kept = gated & self._kept(z, norms, float(refinement.down_thresholds[layer]))
        self.count(len(pool), gated, kept)
        return ffn_output(weights, torch.where(kept, z, 0.0))

    def _kept(self, values: Tensor, weights: Tensor, threshold: float) -> Tensor:
        """Whether each of `values` (n, k) scores high enough; float32 whatever the model's dtype."""
        scores = values.float().abs() * weights.to(values.device)
        return scores >= (self._scales * threshold).to(values.device)

    def count(self, num_pool: int, gated: Tensor, kept: Tensor) -> None:
        """Called once per layer, in order: what of the pool the gate and down_proj are read for, (n, pool) bool."""
        self.num_products += num_pool * self._num_tokens + int(gated.sum()) + int(kept.sum())
        self.num_rows += num_pool + int(gated.any(dim=0).sum()) + int(kept.any(dim=0).sum())


def _pooled(values: FloatArray, pool: NeuronIndices) -> Tensor:
    return torch.from_numpy(values[pool])
