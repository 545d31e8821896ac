"""Bootstrap confidence intervals over answers: how far a mean would move with other prompts.

Tokens of one answer are not independent, answers are: whole answers are drawn with replacement (percentile bootstrap,
Efron & Tibshirani 1993, ch. 13). One set of draws serves everything measured on the same answers, so that conditions
and their differences are compared on the same draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """`counts` (NUM_RESAMPLES, answers): how often each answer was drawn."""

    counts: npt.NDArray[np.int64]
    seed: int

    @classmethod
    def over(cls, num_answers: int, seed: int) -> "Bootstrap":
        shares = np.full(num_answers, 1.0 / num_answers)
        return cls(np.random.default_rng(seed).multinomial(num_answers, shares, size=NUM_RESAMPLES), seed)

    def interval(self, sums: Sequence[float], num_tokens: Sequence[float]) -> Interval | None:
        """Of sum(sums) / sum(num_tokens), both per answer, or of any other ratio of sums. None where fewer than two
        answers have tokens: no spread.

        Draws that hold no token at all, possible where some answers have none, say nothing and are left out.
        """
        if np.count_nonzero(num_tokens) < 2:
            return None
        totals = self.counts @ np.array(num_tokens, np.float64)
        drawn = totals > 0
        ratios = (self.counts @ np.array(sums, np.float64))[drawn] / totals[drawn]
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(ratios, (tail, 1 - tail))
        return float(low), float(high)

    def description(self) -> dict[str, Any]:
        """For the conditions of a result."""
        return {"unit": "answer", "resamples": len(self.counts), "level": LEVEL, "seed": self.seed}
