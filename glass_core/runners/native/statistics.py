"""The arrays a step's statistics are folded into, a set per row and stage (see `runners/base.py`)."""

from dataclasses import dataclass, replace

import numpy as np

from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepRow
from glass_core.runners.native.types import Floats, StatisticsRequest
from glass_core.sparsity.local_stats import LocalStatistics, first_gate


@dataclass(frozen=True, slots=True, eq=False)
class RowStatistics:
    """`stages`: the row's snapshots, then its own end; filled by the step."""

    start: int
    prior: LocalStatistics | None
    stages: tuple[LocalStatistics, ...]

    @classmethod
    def for_row(cls, row: StepRow, spec: ModelSpec) -> "RowStatistics":
        end = row.start + len(row.token_ids)
        lengths = [position - row.start for position in (*row.snapshot_ends, end)]
        if len(lengths) > 1 and lengths[-2] == lengths[-1]:
            lengths.pop()  # the last snapshot is the result
        prior_tokens = 0 if row.prior_statistics is None else row.prior_statistics.num_tokens
        stages = (_empty(spec, prior_tokens + length, gates=row.collect_gates) for length in lengths)
        return cls(row.start, row.prior_statistics, tuple(stages))

    def request(self) -> StatisticsRequest:
        """For the extension."""
        prior = self.prior
        prior_tokens = 0 if prior is None else prior.num_tokens
        sums = (None, None, None) if prior is None else (prior.sum_abs, prior.sum_squares, prior.sum_gates)
        stages = [
            (stage.num_tokens - prior_tokens, stage.sum_abs, stage.sum_squares, stage.sum_gates)
            for stage in self.stages
        ]
        return sums, first_gate(self.start), stages

    @property
    def result(self) -> LocalStatistics:
        return self.stages[-1]

    def snapshots(self, count: int) -> tuple[LocalStatistics, ...]:
        """The first `count` stages; the last may also be the result, then it is copied."""
        if count < len(self.stages):
            return self.stages[:count]
        last = self.stages[-1]
        gates = None if last.sum_gates is None else last.sum_gates.copy()
        copy = replace(last, sum_abs=last.sum_abs.copy(), sum_squares=last.sum_squares.copy(), sum_gates=gates)
        return (*self.stages[:-1], copy)


def _empty(spec: ModelSpec, num_tokens: int, *, gates: bool) -> LocalStatistics:
    """Sums over so many tokens, not yet filled."""

    def sums() -> Floats:
        return np.empty((spec.num_layers, spec.intermediate_size), np.float32)

    return LocalStatistics(sums(), sums(), num_tokens, sums() if gates else None)
