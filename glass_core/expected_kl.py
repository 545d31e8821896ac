"""ExpectedKl: what sparse answers lose on held-out text, by sparsity, and the sparsity that a bound on it allows.

Measured by `glass calibrate`, kept in the artifact, told by the engine; the server resolves `glass_sparsity: "auto"`
with it. Plain numbers, because the server knows no arrays.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from glass_core.errors import ConfigurationError

# the entry of refined answers, beside selection methods, which have the method's name
REFINED = "refined"

# nats per token: what answers may lose where nobody says otherwise
DEFAULT_MAX_KL = 0.02
# leaving out less costs more than it saves
LEAST_SPARSITY = 0.05

# sparsities that `largest_sparsity` gives are whole ones of these
_STEPS_PER_ONE = 100
# 0.29 * 100 is a hair below 29
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ExpectedKl:
    """Mean KL(dense || sparse) per answer token, in nats, at measured sparsities.

    `sparsities` ascend within (0, 1); `kl` never falls (a running maximum of what was measured); `low` and `high` are
    the ends of its bootstrap interval. All have one entry per point. Raises ConfigurationError otherwise.
    """

    sparsities: tuple[float, ...]
    kl: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sparsities or {len(self.kl), len(self.low), len(self.high)} != {len(self.sparsities)}:
            raise ConfigurationError("expected KL: sparsities, kl, low and high must have one entry per point")
        if not _ascends((0.0, *self.sparsities, 1.0), strictly=True):
            raise ConfigurationError(f"expected KL: sparsities must ascend within (0, 1), got {self.sparsities}")
        for name in ("kl", "low", "high"):
            values = getattr(self, name)
            if not (all(map(math.isfinite, values)) and _ascends((0.0, *values), strictly=False)):
                raise ConfigurationError(f"expected KL: {name} must be finite, not negative, not falling, got {values}")

    @property
    def max_sparsity(self) -> float:
        """Nothing was measured beyond."""
        return self.sparsities[-1]

    def at(self, sparsity: float) -> float | None:
        """Between points, and from (0, 0) to the first, linear: above the curve where it is convex, so on the safe
        side. None beyond the last point."""
        if not 0.0 <= sparsity <= self.max_sparsity:
            return None
        points, values = (0.0, *self.sparsities), (0.0, *self.kl)
        after = bisect_left(points, sparsity)
        if points[after] == sparsity:
            return values[after]
        share = (sparsity - points[after - 1]) / (points[after] - points[after - 1])
        # in this form it ascends with the sparsity to the last bit
        return min(values[after - 1] + share * (values[after] - values[after - 1]), values[after])

    def largest_sparsity(self, max_kl: float) -> float:
        """The largest sparsity, in whole percent, whose expected KL is at most `max_kl`; 0 when only the dense model
        is good enough."""
        last = math.floor(self.max_sparsity * _STEPS_PER_ONE + _ROUNDING)
        steps = range(last + 1)
        return (bisect_right(steps, max_kl, key=self._at_step) - 1) / _STEPS_PER_ONE

    def automatic_sparsity(self, max_kl: float) -> float:
        """What `auto` becomes: the largest sparsity, or 0 where that is too small to pay."""
        largest = self.largest_sparsity(max_kl)
        return largest if largest >= LEAST_SPARSITY else 0.0

    def _at_step(self, step: int) -> float:
        value = self.at(min(step / _STEPS_PER_ONE, self.max_sparsity))
        assert value is not None
        return value


# by profile, then by selection method (with the profile's own lambdas) or REFINED
ExpectedKlTables = Mapping[str, Mapping[str, ExpectedKl]]


def _ascends(values: tuple[float, ...], *, strictly: bool) -> bool:
    return all(before < after if strictly else before <= after for before, after in pairwise(values))
