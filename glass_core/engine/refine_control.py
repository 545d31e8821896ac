"""ReadsController: keeps the FFN reads of one refined sequence at what its plan promises.

Thresholds were measured on other text. Integral control corrects them while the answer is written: after each token
log(scale) += GAIN * (reads - target). What has been summed up is the promise's error: after n tokens the mean of the
reads differs from the target by log(scale) / (GAIN * n), as long as the scale stays within its limits. With thresholds
that are off by a factor of 2 the mean is within 0.7 % of the FFN after 100 tokens.

Scales are part of what a token computes, so they are remembered: a token that is computed again after preemption gets
the scale it had, and its reads are not counted twice.
"""

import math

GAIN = 1.0
MAX_SCALE = 8.0


class ReadsController:
    """Scales of one sequence's decoded tokens, numbered from 0. `target` is the promised mean share of FFN reads."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._log_scale = 0.0
        self._scales: list[float] = []
        self._reads: list[float] = []

    @property
    def mean_reads(self) -> float | None:
        """Mean share of FFN weights that the decoded tokens read; None before the first of them."""
        return sum(self._reads) / len(self._reads) if self._reads else None

    @property
    def num_tokens(self) -> int:
        """Tokens that have run."""
        return len(self._reads)

    def scales(self, start: int, end: int) -> tuple[float, ...]:
        """Scales of tokens start … end - 1: those that had one keep it, new ones get the current one."""
        known = tuple(self._scales[start:end])
        return known + (math.exp(self._log_scale),) * (end - start - len(known))

    def observe(self, start: int, end: int, mean_reads: float) -> None:
        """Tokens start … end - 1 ran with the scales given for them and read `mean_reads` on average.

        They have run before, or are the one next new token: a mean of both kinds would give away the new one's reads
        only up to rounding, and the answer would depend on whether it was preempted.
        """
        if end <= self.num_tokens:
            return
        if (start, end) != (self.num_tokens, self.num_tokens + 1):
            raise ValueError(f"token {self.num_tokens} is next, alone; got tokens {start} to {end - 1}")
        self._scales.append(math.exp(self._log_scale))
        self._reads.append(mean_reads)
        limit = math.log(MAX_SCALE)
        changed = self._log_scale + GAIN * (mean_reads - self._target)
        self._log_scale = min(max(changed, -limit), limit)
