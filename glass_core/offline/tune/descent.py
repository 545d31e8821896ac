"""The descent: damped Newton steps along the combined direction of all objectives (domains x sparsities), resumable.

Coordinates are scaled by the square roots of the estimated second derivatives before the gradients are combined, so
that a step of the length of the mean gradient is a Newton step, and neither layers nor stages need rates of their own.
Every step sees all learning texts: gradients of log KL are small against the noise of a few hundred tokens.

The state between two steps is plain numbers, so that it can be stored exactly: a resumed run gives the same bits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch

from glass_core.offline.tune.aggregators import Combination
from glass_core.offline.tune.objectives import Measured, TextBatch
from glass_core.offline.tune.offsets import FloatArray, chain, log_thresholds, no_offsets, place, square_chain
from glass_core.offline.tune.settings import KERNEL_WIDTH, TuningSettings
from glass_core.sparsity.refinement_table import RefinementTable

# Curvatures count as at least this share of their mean: a layer that hardly reads anything would move without end.
_SMALLEST_CURVATURE = 0.2


@dataclass(slots=True)
class DescentState:
    """`offsets` (NUM_KINDS, num_layers): what is learned; `shifts` by batch and sparsity (num_batches, num_sparsities,
    num_texts); `losses`: KL by step, sparsity and domain."""

    offsets: FloatArray
    shifts: FloatArray
    aggregator: list[float] = field(default_factory=list)
    num_steps: int = 0
    losses: list[list[list[float]]] = field(default_factory=list)

    @classmethod
    def begin(cls, num_layers: int, num_batches: int, num_sparsities: int, num_texts: int) -> Self:
        return cls(no_offsets(num_layers), np.zeros((num_batches, num_sparsities, num_texts)))

    def to_json_object(self) -> dict[str, Any]:
        raw = asdict(self)
        return raw | {name: raw[name].tolist() for name in ("offsets", "shifts")}

    @classmethod
    def from_json_object(cls, raw: dict[str, Any]) -> Self:
        return cls(**raw | {name: np.array(raw[name]) for name in ("offsets", "shifts")})


@dataclass(frozen=True, slots=True, eq=False)
class Objectives:
    """One sparsity's objectives, the domains: KL (num_domains,), and gradients and curvatures of its logarithm
    (num_domains, stages, num_layers)."""

    kl: FloatArray
    gradients: FloatArray
    curvatures: FloatArray


class Descent:
    """The steps. Every batch holds one text of every domain, in the same order; a step sees all batches."""

    def __init__(self, table: RefinementTable, batches: Sequence[TextBatch], settings: TuningSettings) -> None:
        self._table, self._batches, self._settings = table, batches, settings

    def step(self, state: DescentState) -> None:
        """One step: gradients at every sparsity on all texts, one direction, one move."""
        found = [self._objectives(state, number) for number in range(len(self._settings.sparsities))]
        jacobian, scales = self._jacobian(found), self._scales(found)
        combination = Combination(self._settings.aggregator, state.aggregator)
        direction = combination.combine((jacobian / scales).reshape(len(jacobian), -1))
        state.aggregator = combination.state
        state.losses.append([item.kl.tolist() for item in found])
        state.offsets = state.offsets - self._settings.rate * direction.reshape(scales.shape) / scales
        state.num_steps += 1

    def _objectives(self, state: DescentState, number: int) -> Objectives:
        """One sparsity's, from all batches; their shifts go where the reads are what was asked."""
        measured = []
        for index, batch in enumerate(self._batches):
            measured.append(self._differentiate(state, batch, index, number))
            state.shifts[index, number] += measured[-1].moves.numpy()
        return pool(measured, [batch.num_tokens for batch in self._batches])

    def _differentiate(self, state: DescentState, batch: TextBatch, index: int, number: int) -> Measured:
        sparsity = self._settings.sparsities[number]
        logs = torch.from_numpy(
            log_thresholds(self._table, state.offsets, sparsity, place(sparsity, self._settings.sparsities))
        )
        shifts = torch.from_numpy(state.shifts[index, number].copy())
        if not state.num_steps:
            shifts = batch.shifts_at_reads(logs, shifts, 1.0 - sparsity, width=KERNEL_WIDTH)
            state.shifts[index, number] = shifts.numpy()
        return batch.differentiate(logs, shifts, 1.0 - sparsity, width=KERNEL_WIDTH)

    def _jacobian(self, found: Sequence[Objectives]) -> FloatArray:
        """One row per objective, (num_sparsities * num_domains, NUM_KINDS, num_layers)."""
        places = [place(sparsity, self._settings.sparsities) for sparsity in self._settings.sparsities]
        return np.concatenate([chain(item.gradients, x) for item, x in zip(found, places, strict=True)])

    def _scales(self, found: Sequence[Objectives]) -> FloatArray:
        """Square roots of the objectives' mean curvatures, (NUM_KINDS, num_layers)."""
        places = [place(sparsity, self._settings.sparsities) for sparsity in self._settings.sparsities]
        rows = [square_chain(item.curvatures, x) for item, x in zip(found, places, strict=True)]
        means = np.concatenate(rows).mean(axis=0)
        smallest = _SMALLEST_CURVATURE * means.mean(axis=1, keepdims=True)
        scales: FloatArray = np.sqrt(np.maximum(means, np.maximum(smallest, 1e-12)))
        return scales


def pool(measured: Sequence[Measured], num_tokens: Sequence[FloatArray]) -> Objectives:
    """The objectives of text t of all batches together: log of the mean KL over their tokens."""
    sums = np.array([item.kl.numpy() * tokens for item, tokens in zip(measured, num_tokens, strict=True)])
    shares = (sums / sums.sum(axis=0).clip(min=1e-12))[:, :, None, None]
    gradients = np.array([item.gradients.numpy() for item in measured if item.gradients is not None])
    bends = np.array([item.curvatures.numpy() for item in measured if item.curvatures is not None])
    return Objectives(
        sums.sum(axis=0) / np.sum(num_tokens, axis=0), (shares * gradients).sum(axis=0), (shares * bends).sum(axis=0)
    )
