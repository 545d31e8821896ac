"""Collects one row's LocalStatistics from its intermediate activations while a step runs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.sparsity.local_stats import LocalStatistics

Float32Array = npt.NDArray[np.float32]


class StatisticsCollector:
    """Sums of |z/‖z‖| and (z/‖z‖)² over a row's tokens, float32 whatever the model's dtype, one token after the other.

    `prior` are the sums so far, continued and not changed; `snapshot_lengths` are numbers of the row's own tokens,
    ascending, after which the sums are wanted as well (`runners/base.py` says why the order matters).
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_tokens: int,
        *,
        prior: LocalStatistics | None = None,
        snapshot_lengths: Sequence[int] = (),
    ) -> None:
        def zeros() -> LocalStatistics:
            return LocalStatistics.zeros(spec.num_layers, spec.intermediate_size)

        self._prior = zeros() if prior is None else prior
        self._lengths = [*snapshot_lengths, num_tokens]
        self._stages = [zeros() for _ in self._lengths]

    def add(self, layer: int, z: Tensor) -> None:
        """Take layer `layer`'s z of the row, (num_tokens, intermediate_size); an all-zero z contributes zero."""
        magnitudes = normalize_tokens(z).abs()
        # numpy, because torch is free to sum in any order
        self._fold(layer, "sum_abs", magnitudes.cpu().numpy())
        self._fold(layer, "sum_squares", magnitudes.square().cpu().numpy())

    def result(self) -> LocalStatistics:
        """The sums over the prior tokens and all of the row's."""
        return self._at(-1)

    def snapshots(self) -> tuple[LocalStatistics, ...]:
        """The sums at each of `snapshot_lengths`."""
        return tuple(self._at(index) for index in range(len(self._lengths) - 1))

    def _fold(self, layer: int, name: str, values: Float32Array) -> None:
        """One kind of sums."""
        sums = getattr(self._prior, name)[layer]
        start = 0
        for end, stage in zip(self._lengths, self._stages, strict=True):
            sums = add_in_order(sums, values[start:end])
            getattr(stage, name)[layer] = sums
            start = end

    def _at(self, index: int) -> LocalStatistics:
        return replace(self._stages[index], num_tokens=self._prior.num_tokens + self._lengths[index])


def add_in_order(sums: Float32Array, values: Float32Array) -> Float32Array:
    """sums (m,) + values[0] (m,) + values[1] + …, in exactly this order; a new array."""
    total = sums.copy()
    for row in values:
        total += row
    return total


def normalize_tokens(z: Tensor) -> Tensor:
    """z (n, m) with every token scaled to unit length, float32; zero stays zero."""
    full = z.float()
    # scaling by the largest entry first keeps the squares from overflowing or vanishing
    largest = full.abs().amax(dim=-1, keepdim=True)
    scaled = full / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0)
