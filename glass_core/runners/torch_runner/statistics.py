"""Collects one row's LocalStatistics from its intermediate activations while a step runs."""

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.sparsity.local_stats import LocalStatistics


class StatisticsCollector:
    """Sums of |z/‖z‖| and (z/‖z‖)² over one row's tokens, float32 whatever the model's dtype."""

    def __init__(self, spec: ModelSpec, num_tokens: int, device: torch.device) -> None:
        self._num_tokens = num_tokens
        # (2, num_layers, intermediate_size): absolute values, squares
        self._sums = torch.zeros((2, spec.num_layers, spec.intermediate_size), dtype=torch.float32, device=device)

    def add(self, layer: int, z: Tensor) -> None:
        """Take layer `layer`'s z (num_tokens, intermediate_size) of the row; an all-zero z contributes zero."""
        normalized = normalize_tokens(z)
        self._sums[0, layer] = normalized.abs().sum(dim=0)
        self._sums[1, layer] = normalized.square().sum(dim=0)

    def result(self) -> LocalStatistics:
        sum_abs, sum_squares = self._sums.cpu().numpy()
        return LocalStatistics(sum_abs, sum_squares, self._num_tokens)


def normalize_tokens(z: Tensor) -> Tensor:
    """z (n, m) with every token scaled to unit length, float32; zero stays zero."""
    full = z.float()
    # scaling by the largest entry first keeps the squares from overflowing or vanishing
    largest = full.abs().amax(dim=-1, keepdim=True)
    scaled = full / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0)
