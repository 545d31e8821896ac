"""The FFN of one refined row, and what its tokens read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.runners.torch_runner.cascade import Kept, StageTensors, run_cascade
from glass_core.runners.torch_runner.ffn import ffn_output
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.flops import ffn_weights
from glass_core.sparsity.refinement import Refinement


class RefinedFfn:
    """The refined FFN of one row's tokens in one step, counting as it goes. `ffn` is an `Ffn`.

    `num_products` are the weights that its tokens multiply, summed over tokens, layers and matrices; `num_weights` the
    distinct ones among them.
    """

    def __init__(
        self, spec: ModelSpec, views: PackedViews, refinement: Refinement, num_tokens: int, scales: Sequence[float]
    ) -> None:
        """`scales`: one factor per token on all thresholds, empty = 1 for all."""
        device = views.weights(0).down_proj.device
        self._spec = spec
        self._views = views
        self._num_tokens = num_tokens
        self._scores = StageTensors.of_weights(refinement.weights, device)
        factors = torch.tensor(scales or (1.0,) * num_tokens, dtype=torch.float32)
        self._thresholds = (torch.from_numpy(refinement.thresholds)[:, :, None] * factors).to(device)
        self.num_products = 0
        self.num_weights = 0

    @property
    def reads(self) -> float:
        """Mean share of FFN weights that a token reads."""
        all_weights = ffn_weights(self._spec, self._spec.num_layers * self._spec.intermediate_size)
        return self.num_products / (self._num_tokens * all_weights)

    def ffn(self, layer: int, x: Tensor) -> Tensor:
        """Refined FFN output (n, hidden) of x (n, hidden)."""
        weights, pool = self._views.weights(layer), self._views.plan.neurons[layer]
        scores = self._scores.of_layer(layer).of_neurons(torch.tensor(pool, dtype=torch.int64, device=x.device))
        z, kept = run_cascade(weights, self._spec.activation, x, scores, self._thresholds[:, layer])
        self.count(kept)
        return ffn_output(weights, z)

    def count(self, kept: Kept) -> None:
        """Called once per layer, in order."""
        self.num_products += int(kept.num_weights(self._spec.intermediate_size).sum())
        self.num_weights += int(kept.union().num_weights(self._spec.intermediate_size))
