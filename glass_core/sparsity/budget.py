"""Layer budgets: one sparsity for the request, shared among layers by a profile, exact in sum.

What a profile weighs is *pruning*, not keeping. "Budgets proportional to sensitivity^-0.6" cannot speak of kept
neurons: the layer that hurts most when pruned would keep least. It speaks of the pruning budget,
`m - k_l ~ sensitivity_l^-exponent`, which is the classic allocation: if pruning a share p of layer l costs s_l * p^a,
the cheapest way to prune a fixed total has p_l ~ s_l^(-1/(a-1)) (Lagrange), so the exponent stands for 1/(a-1).
Weights on what is pruned also mean the same at every density (a layer of weight 0 stays dense), whereas weights on
what is kept would at high density ask some layers for more neurons than they have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glass_core.errors import ConfigurationError

UNIFORM = "uniform"
SENSITIVITY = "sensitivity"
# written by `glass tune` where its thresholds beat the measured ones on held-out text
TUNED = "tuned"

# Our choice, from measurements on SmolLM2-135M-Instruct; equals a damage exponent a of about 2.7.
SENSITIVITY_EXPONENT = 0.6

# A layer measured at (numerically) zero would otherwise take all the pruning: a sensitivity counts as at least this
# share of the largest one.
SENSITIVITY_FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class Profile:
    """How layers share the pruning, and optionally their own lambdas.

    `prune_weights[l]` >= 0 is layer l's relative share of pruned neurons (only ratios matter; 0 = pruned only when
    the others have nothing left to give). `lambdas[l]` in [0, 1] weighs the global ranking in layer l; None = the
    request's or the default. Raises ConfigurationError when a value is out of range.
    """

    name: str
    prune_weights: tuple[float, ...]
    lambdas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("a profile needs a name")
        if not self.prune_weights:
            raise ConfigurationError(f"profile {self.name!r}: expected one prune weight per layer, got none")
        for weight in self.prune_weights:
            if not 0.0 <= weight < math.inf:
                raise ConfigurationError(f"profile {self.name!r}: prune weights must be finite and >= 0, got {weight}")
        if self.lambdas is not None:
            self._check_lambdas(self.lambdas)

    def _check_lambdas(self, lambdas: tuple[float, ...]) -> None:
        if len(lambdas) != self.num_layers:
            raise ConfigurationError(
                f"profile {self.name!r}: {self.num_layers} prune weights but {len(lambdas)} lambdas"
            )
        for value in lambdas:
            if not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"profile {self.name!r}: lambdas must lie in [0, 1], got {value}")

    @property
    def num_layers(self) -> int:
        return len(self.prune_weights)


def uniform_profile(num_layers: int) -> Profile:
    """Every layer prunes the same share: the paper's schedule."""
    return Profile(UNIFORM, (1.0,) * num_layers)


def sensitivity_profile(sensitivity: npt.ArrayLike, *, exponent: float = SENSITIVITY_EXPONENT) -> Profile:
    """Layers prune in proportion to `sensitivity^-exponent` (see the module's reasoning); exponent 0 is uniform.

    `sensitivity` (num_layers,): damage done by pruning that layer alone, in any unit (ours: mean KL at density 0.5).
    Raises ConfigurationError when a value is negative or not finite, or the exponent is negative.
    """
    values = np.asarray(sensitivity, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ConfigurationError(f"expected one finite, non-negative sensitivity per layer, got {values}")
    if not 0.0 <= exponent < math.inf:
        raise ConfigurationError(f"exponent must be finite and >= 0, got {exponent}")
    largest = values.max(initial=0.0)
    relative = np.maximum(values / largest, SENSITIVITY_FLOOR) if largest > 0 else np.ones_like(values)
    return Profile(SENSITIVITY, tuple(float(weight) for weight in relative**-exponent))


def layer_budgets(density: float, profile: Profile, intermediate_size: int) -> tuple[int, ...]:
    """Neurons each layer keeps: in [1, m] each, and their sum is round(density * L * m) (at least one per layer).

    Pruned neurons are shared in proportion to the profile's weights; a layer that would lose its last neuron keeps it
    and the others take over; fractions go by largest remainder, on a tie the lower layer keeps the neuron.
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    num_neurons = profile.num_layers * intermediate_size
    num_kept = max(round(density * num_neurons), profile.num_layers)
    pruned = _apportion(num_neurons - num_kept, profile.prune_weights, cap=intermediate_size - 1)
    return tuple(intermediate_size - count for count in pruned)


def _apportion(total: int, weights: Sequence[float], *, cap: int) -> list[int]:
    """Integers proportional to `weights`, each at most `cap`, summing to `total` <= len(weights) * cap."""
    shares = _capped_shares(total, weights, cap)
    counts = [int(share) for share in shares]
    # a share equal to the cap has no fraction left, so nothing is pushed over the cap
    by_remainder = sorted(range(len(shares)), key=lambda layer: (shares[layer] - counts[layer], layer), reverse=True)
    for layer in by_remainder[: total - sum(counts)]:
        counts[layer] += 1
    return counts


def _capped_shares(total: int, weights: Sequence[float], cap: int) -> list[float]:
    """Real shares proportional to `weights`, clamped at `cap`, what is clamped away redistributed ("water filling")."""
    shares = [0.0] * len(weights)
    open_layers = list(range(len(weights)))
    remaining = total
    while remaining > 0:
        wanted = dict(zip(open_layers, _proportional(remaining, [weights[i] for i in open_layers]), strict=True))
        full = {layer for layer, share in wanted.items() if share >= cap}
        for layer in full or open_layers:
            shares[layer] = min(wanted[layer], float(cap))
        if not full:
            break
        remaining -= cap * len(full)
        open_layers = [layer for layer in open_layers if layer not in full]
    return shares


def _proportional(total: int, weights: Sequence[float]) -> list[float]:
    """`total` divided in proportion to `weights`; equally when all are zero. The largest weight is scaled to 1 first,
    so that sums of huge weights do not overflow and tiny ones count once the huge ones have given all they can."""
    largest = max(weights)
    scaled = [weight / largest for weight in weights] if largest > 0 else [1.0] * len(weights)
    return [total * (weight / sum(scaled)) for weight in scaled]
