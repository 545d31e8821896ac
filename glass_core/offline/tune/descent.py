"""The descent: Adam on the combined direction of all objectives (domains x sparsities), step by step, resumable.

The state between two steps is plain numbers, so that it can be stored exactly: a resumed run gives the same bits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch

from glass_core.offline.tune.aggregators import Combination
from glass_core.offline.tune.objectives import Measured, TextBatch
from glass_core.offline.tune.offsets import FloatArray, chain, log_thresholds, no_offsets, place
from glass_core.offline.tune.settings import TuningSettings
from glass_core.sparsity.refinement_table import RefinementTable

_BETAS = (0.9, 0.99)
_EPSILON = 1e-12
# Width of the kernel in units of the logarithm: wide while far from the goal, narrow at the end.
_WIDTHS = (0.4, 0.2)


@dataclass(slots=True)
class DescentState:
    """`offsets`, `first`, `second` (4, num_layers): what is learned, and Adam's moments; `shifts` by batch and
    sparsity (num_batches, num_sparsities, num_texts)."""

    offsets: FloatArray
    first: FloatArray
    second: FloatArray
    shifts: FloatArray
    aggregator: list[float] = field(default_factory=list)
    num_steps: int = 0
    losses: list[list[list[float]]] = field(default_factory=list)

    @classmethod
    def begin(cls, num_layers: int, num_batches: int, num_sparsities: int, num_texts: int) -> Self:
        nothing = no_offsets(num_layers)
        return cls(nothing, nothing, nothing, np.zeros((num_batches, num_sparsities, num_texts)))

    def to_json_object(self) -> dict[str, Any]:
        raw = asdict(self)
        return raw | {name: raw[name].tolist() for name in ("offsets", "first", "second", "shifts")}

    @classmethod
    def from_json_object(cls, raw: dict[str, Any]) -> Self:
        return cls(**raw | {name: np.array(raw[name]) for name in ("offsets", "first", "second", "shifts")})


class Descent:
    """The steps. Batch b holds one text of every domain; the batches take turns."""

    def __init__(self, table: RefinementTable, batches: Sequence[TextBatch], settings: TuningSettings) -> None:
        self._table, self._batches, self._settings = table, batches, settings

    def step(self, state: DescentState) -> None:
        """One step: gradients at every sparsity on the next batch, one direction, one move."""
        index = state.num_steps % len(self._batches)
        measured = [self._differentiate(state, index, number) for number in range(len(self._settings.sparsities))]
        combination = Combination(self._settings.aggregator, state.aggregator)
        direction = combination.combine(self._jacobian(measured))
        state.aggregator = combination.state
        state.losses.append([item.kl.tolist() for item in measured])
        for number, item in enumerate(measured):
            state.shifts[index, number] += item.moves.numpy()
        state.num_steps += 1
        self._move(state, direction.reshape(state.offsets.shape))

    def _differentiate(self, state: DescentState, index: int, number: int) -> Measured:
        sparsity = self._settings.sparsities[number]
        logs = log_thresholds(self._table, state.offsets, sparsity, place(sparsity, self._settings.sparsities))
        shifts = torch.from_numpy(state.shifts[index, number].copy())
        width = np.interp(state.num_steps / self._settings.num_steps, (0.0, 1.0), _WIDTHS)
        batch = self._batches[index]
        return batch.differentiate(torch.from_numpy(logs), shifts, 1.0 - sparsity, width=float(width))

    def _jacobian(self, measured: Sequence[Measured]) -> FloatArray:
        """One row per objective, (num_sparsities * num_texts, 4 * num_layers)."""
        rows = []
        for sparsity, item in zip(self._settings.sparsities, measured, strict=True):
            assert item.gradients is not None
            rows.append(chain(item.gradients.numpy(), place(sparsity, self._settings.sparsities)))
        joined = np.concatenate(rows)
        return joined.reshape(len(joined), -1)

    def _move(self, state: DescentState, direction: FloatArray) -> None:
        """Adam (arXiv 1412.6980) with a rate that falls to a tenth."""
        state.first = _BETAS[0] * state.first + (1 - _BETAS[0]) * direction
        state.second = _BETAS[1] * state.second + (1 - _BETAS[1]) * direction**2
        first = state.first / (1 - _BETAS[0] ** state.num_steps)
        second = state.second / (1 - _BETAS[1] ** state.num_steps)
        rate = self._settings.learning_rate * (1.0 - 0.9 * state.num_steps / self._settings.num_steps)
        state.offsets = state.offsets - rate * first / (np.sqrt(second) + _EPSILON)
