"""What the server's default, `glass_sparsity: "auto"`, becomes for a model: the server decides per request, by the same
tables and the same rule."""

from dataclasses import dataclass

import numpy as np

from glass_core.api import SparsityParams
from glass_core.expected_kl import DEFAULT_MAX_KL, REFINED
from glass_core.models.spec import ModelSpec
from glass_core.sparsity.global_stats import GlobalStatistics
from glass_core.sparsity.selection import PlanSelector


@dataclass(frozen=True, slots=True)
class AutomaticDefault:
    """`sparsity` 0 = dense, because the bound of `max_kl` nats per token allows no more than would pay."""

    sparsity: float
    expected_kl: float
    max_kl: float
    method: str
    profile: str

    def describe(self) -> str:
        """For people."""
        bound = f"bound {self.max_kl:g} nats per token"
        if self.sparsity == 0:
            return f"dense: {self.method} answers by {self.profile} lose too much for the {bound}"
        kl = f"expected KL {self.expected_kl:.4f}, {bound}"
        return f"{self.sparsity:.0%} of the FFN skipped, {self.method} by {self.profile}; {kl}"


def automatic_default(
    spec: ModelSpec, statistics: GlobalStatistics, *, max_kl: float = DEFAULT_MAX_KL
) -> AutomaticDefault | None:
    """Of requests without any field of ours, to a server without any setting; None where no KL was measured."""
    selector = PlanSelector(
        num_layers=spec.num_layers,
        intermediate_size=spec.intermediate_size,
        statistics=statistics,
        magnitudes=lambda: np.zeros((spec.num_layers, spec.intermediate_size), np.float32),
    )
    profile = selector.default_profile
    method = REFINED if profile in selector.refinable else SparsityParams().method
    expected = selector.expected_kl.get(profile, {}).get(method)
    if expected is None:
        return None
    sparsity = expected.automatic_sparsity(max_kl)
    return AutomaticDefault(sparsity, expected.at(sparsity) or 0.0, max_kl, method, profile)
