"""Tables compared on text that nothing was learned from: KL per domain and sparsity, every text at equal reads."""

from dataclasses import dataclass

import numpy as np
import torch

from glass_core.offline.tune.objectives import TextBatch
from glass_core.offline.tune.offsets import FloatArray, log_thresholds, place
from glass_core.offline.tune.settings import TuningSettings
from glass_core.sparsity.refinement_table import RefinementTable

_WIDTH = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """`kl` (num_sparsities, num_texts), and the shifts (num_sparsities, num_texts) at which the reads were equal."""

    kl: FloatArray
    shifts: FloatArray

    def by_sparsity(self) -> list[float]:
        """Mean KL per token at each sparsity."""
        means: list[float] = self.kl.mean(axis=1).tolist()
        return means


def evaluate(
    table: RefinementTable, offsets: FloatArray, batch: TextBatch, settings: TuningSettings, shifts: FloatArray
) -> HeldOut:
    """Hard thresholds at every tuned sparsity; `shifts` is where the search for equal reads begins."""
    values, found = [], []
    for sparsity, start in zip(settings.sparsities, shifts, strict=True):
        logs = torch.from_numpy(log_thresholds(table, offsets, sparsity, place(sparsity, settings.sparsities)))
        measured, shift = batch.at_reads(logs, torch.from_numpy(start), 1.0 - sparsity, width=_WIDTH)
        values.append(measured.kl.numpy())
        found.append(shift.numpy())
    return HeldOut(np.array(values), np.array(found))


def improvement(tuned: HeldOut, default: HeldOut) -> float:
    """Mean over objectives of log(KL of the default / KL of the tuned): positive is better."""
    return float(np.mean(np.log(default.kl) - np.log(tuned.kl)))


def is_better(tuned: HeldOut, default: HeldOut) -> bool:
    """Whether the tuned thresholds win over all objectives and lose at no sparsity."""
    no_worse = all(ours <= theirs for ours, theirs in zip(tuned.by_sparsity(), default.by_sparsity(), strict=True))
    return no_worse and improvement(tuned, default) > 0.0
