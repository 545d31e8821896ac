"""Refiner: refined plans of one loaded model, from the artifact's scores and thresholds.

They are the same for every prompt: each token chooses for itself, by scores that were weighted when the model was
calibrated.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from glass_core.api import SparsityParams
from glass_core.errors import MissingStatisticsError
from glass_core.sparsity.global_stats import GlobalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement
from glass_core.sparsity.refinement_table import RefinementTable

NUM_REMEMBERED_REFINEMENTS = 64
_HOW_TO_MEASURE = "`glass calibrate MODEL` measures it"


class Refiner:
    """Makes plans whose pool is all neurons, scored by the tables' own weights, which all plans of a profile share."""

    def __init__(
        self, num_layers: int, intermediate_size: int, statistics: GlobalStatistics | None, *, runner_refines: bool
    ) -> None:
        self.problem = _problem(statistics, runner_refines)
        self.budgets = (intermediate_size,) * num_layers
        self._tables: Mapping[str, RefinementTable] = {}
        if statistics is None or self.problem is not None:
            return
        self._tables = statistics.refinement
        everything = np.arange(intermediate_size, dtype=np.int32)
        everything.setflags(write=False)
        self._pool = (everything,) * num_layers
        # a server's requests are mostly alike, and a plan stands between a prompt and its first sparse token
        self._refinements = lru_cache(maxsize=NUM_REMEMBERED_REFINEMENTS)(self._refinement)

    @property
    def max_sparsities(self) -> dict[str, float]:
        """The largest sparsity of every profile that can be refined."""
        return {name: table.max_sparsity for name, table in self._tables.items()}

    def check(self, params: SparsityParams) -> None:
        """Raises MissingStatisticsError for what was not measured, InvalidRequestError beyond the measured range."""
        if self.problem is not None:
            raise MissingStatisticsError(f"glass_refine is unavailable: {self.problem}", param="glass_refine")
        if params.profile not in self._tables:
            raise MissingStatisticsError(
                f"glass_refine is unavailable for glass_profile {params.profile!r}; it is measured for "
                f"{', '.join(self._tables)}",
                param="glass_refine",
            )
        self._tables[params.profile].check(params.sparsity)

    def plan(self, params: SparsityParams) -> SparsityPlan:
        """The refined plan that reads 1 - sparsity of the FFN on average. Raises as `check`."""
        self.check(params)
        return SparsityPlan(
            method=params.method,
            profile=params.profile,
            lambda_=None,
            sparsity_requested=params.sparsity,
            intermediate_size=self.budgets[0],
            neurons=self._pool,
            refinement=self._refinements(params.profile, params.sparsity),
        )

    def _refinement(self, profile: str, sparsity: float) -> Refinement:
        table = self._tables[profile]
        return Refinement(table.weights, table.thresholds_at(sparsity), reads=1.0 - sparsity)


def _problem(statistics: GlobalStatistics | None, runner_refines: bool) -> str | None:
    if not runner_refines:
        return "this runner cannot refine"
    if statistics is None:
        return f"there is no artifact; {_HOW_TO_MEASURE}"
    return None if statistics.refinement else f"the artifact lacks thresholds; {_HOW_TO_MEASURE}"
