"""The arrays a step's statistics are folded into, one pair per row and stage (see `runners/base.py`)."""

from dataclasses import dataclass

import numpy as np

from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepRow
from glass_core.runners.native.types import Floats, StatisticsRequest
from glass_core.sparsity.local_stats import LocalStatistics


@dataclass(frozen=True, slots=True, eq=False)
class RowStatistics:
    """`stages`: the row's snapshots, then its own end; filled by the step."""

    prior: LocalStatistics | None
    stages: tuple[LocalStatistics, ...]

    @classmethod
    def for_row(cls, row: StepRow, spec: ModelSpec) -> "RowStatistics":
        end = row.start + len(row.token_ids)
        prior_tokens = 0 if row.prior_statistics is None else row.prior_statistics.num_tokens
        lengths = [position - row.start for position in (*row.snapshot_ends, end)]
        if len(lengths) > 1 and lengths[-2] == lengths[-1]:
            lengths.pop()  # the last snapshot is the result
        stages = tuple(LocalStatistics(_empty(spec), _empty(spec), prior_tokens + length) for length in lengths)
        return cls(row.prior_statistics, stages)

    def request(self) -> StatisticsRequest:
        """For the extension."""
        prior = self.prior
        prior_tokens = 0 if prior is None else prior.num_tokens
        stages = [(stage.num_tokens - prior_tokens, stage.sum_abs, stage.sum_squares) for stage in self.stages]
        return (None, None, stages) if prior is None else (prior.sum_abs, prior.sum_squares, stages)

    @property
    def result(self) -> LocalStatistics:
        return self.stages[-1]

    def snapshots(self, count: int) -> tuple[LocalStatistics, ...]:
        """The first `count` stages; the last may also be the result, then it is copied."""
        if count < len(self.stages):
            return self.stages[:count]
        last = self.stages[-1]
        copy = LocalStatistics(last.sum_abs.copy(), last.sum_squares.copy(), last.num_tokens)
        return (*self.stages[:-1], copy)


def _empty(spec: ModelSpec) -> Floats:
    return np.empty((spec.num_layers, spec.intermediate_size), np.float32)
