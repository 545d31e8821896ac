"""Tables compared on text that nothing was learned from: KL per text and sparsity, every text at equal reads.

Both tables meet the same tokens, so the noise of the difference is far below that of either KL: what is decided by is
the bootstrap interval, over texts, of the difference of log KL.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glass_core.offline.evaluate.bootstrap import LEVEL, Bootstrap
from glass_core.offline.tune.objectives import TextBatch
from glass_core.offline.tune.offsets import FloatArray, log_thresholds, place
from glass_core.offline.tune.settings import KERNEL_WIDTH, TuningSettings
from glass_core.sparsity.refinement_table import RefinementTable


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """`kl` (num_sparsities, num_texts), tokens of the texts (num_texts,), and the shifts (num_sparsities, num_texts) at
    which the reads were equal."""

    kl: FloatArray
    num_tokens: FloatArray
    shifts: FloatArray

    def by_sparsity(self) -> list[float]:
        """Mean KL per token at each sparsity."""
        means: list[float] = (self.kl @ self.num_tokens / self.num_tokens.sum()).tolist()
        return means


@dataclass(frozen=True, slots=True)
class Gain:
    """log(KL of the default / KL of the tuned), positive is better, with its interval's ends."""

    value: float
    low: float
    high: float

    def to_json_object(self) -> dict[str, float]:
        return {"log_kl_ratio": self.value, "low": self.low, "high": self.high}


def evaluate(
    table: RefinementTable, offsets: FloatArray, batch: TextBatch, settings: TuningSettings, shifts: FloatArray
) -> HeldOut:
    """Hard thresholds at every tuned sparsity; `shifts` is where the search for equal reads begins."""
    values, found = [], []
    for sparsity, start in zip(settings.sparsities, shifts, strict=True):
        logs = torch.from_numpy(log_thresholds(table, offsets, sparsity, place(sparsity, settings.sparsities)))
        measured, shift = batch.at_reads(logs, torch.from_numpy(start), 1.0 - sparsity, width=KERNEL_WIDTH)
        values.append(measured.kl.numpy())
        found.append(shift.numpy())
    return HeldOut(np.array(values), batch.num_tokens, np.array(found))


def improvement(tuned: HeldOut, default: HeldOut) -> float:
    """Mean over sparsities of log(KL of the default / KL of the tuned): positive is better."""
    return float(np.mean(np.log(default.by_sparsity()) - np.log(tuned.by_sparsity())))


def gains(tuned: HeldOut, default: HeldOut) -> list[Gain]:
    """At every sparsity, then their mean; intervals by resampling texts, the same ones of both tables."""
    draws = Bootstrap.over(len(default.num_tokens), seed=0).counts.astype(np.float64)
    ours, theirs = (draws @ (item.kl * item.num_tokens).T for item in (tuned, default))
    resampled = (np.log(theirs) - np.log(ours)).T
    values = np.log(default.by_sparsity()) - np.log(tuned.by_sparsity())
    ends = ((1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0)
    rows = [*zip(values, resampled, strict=True), (values.mean(), resampled.mean(axis=0))]
    return [Gain(float(value), *np.quantile(row, ends).tolist()) for value, row in rows]


def decision_to_json_object(tuned: HeldOut, default: HeldOut, *, tuned_wins: bool) -> dict[str, Any]:
    """What was decided on these, for a result file."""
    return {
        "default_kl": default.by_sparsity(),
        "tuned_kl": tuned.by_sparsity(),
        "gains": [gain.to_json_object() for gain in gains(tuned, default)],
        "num_texts": len(default.num_tokens),
        "num_tokens": int(default.num_tokens.sum()),
        "tuned_wins": tuned_wins,
    }


def is_better(tuned: HeldOut, default: HeldOut) -> bool:
    """Whether the gain, the mean over sparsities, is beyond its interval, and none is lost at any sparsity."""
    *by_sparsity, mean = gains(tuned, default)
    return mean.low > 0.0 and all(gain.value >= 0.0 for gain in by_sparsity)
