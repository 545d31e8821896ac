"""Refiner: refined plans of one loaded model, from the artifact's scores and thresholds.

A request with a lambda of its own has its prompt's gates weigh in what |u_j| counts for, global and local as in GLASS
(arXiv 2508.14302):

    up_j = weights.up_j * ((1 - lambda) * E_prompt|g_j| / max(E_model|g_j|, GATE_FLOOR) + lambda)

E_model|g| being the artifact's `mean_abs_gate`. The factor is relative, so that thresholds keep their meaning. Without
a lambda it is 1, the model's own weights, because every share of the prompt was measured to cost KL: SmolLM2, half the
reads, 0.794 with the model's alone, 0.815 with half, 0.853 with the prompt's alone on short prompts; on prompts of 376
to 511 tokens 0.1985 with the model's alone, 0.2082 with E[g^2] of the prompt mixed in, the model's at the weight of
1000 tokens, 0.2272 at 300.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from glass_core.api import SparsityParams
from glass_core.errors import EngineFailureError, MissingStatisticsError
from glass_core.sparsity.global_stats import GlobalStatistics
from glass_core.sparsity.local_stats import FloatArray, LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement
from glass_core.sparsity.refinement_table import RefinementTable

DEFAULT_LAMBDA = 1.0
# Below every E|g| of SmolLM2 (the smallest is 2e-5, the median 0.2): it is there for neurons that never open.
GATE_FLOOR = 1e-6
NUM_REMEMBERED_REFINEMENTS = 64
_HOW_TO_MEASURE = "`glass calibrate MODEL` measures it"


def refined_lambda(params: SparsityParams) -> float:
    """The weight of the model's own gates in a refined request's scores."""
    return DEFAULT_LAMBDA if params.lambda_ is None else params.lambda_


class Refiner:
    """Makes plans whose pool is all neurons, scored by the tables' own weights, which all plans of a profile share."""

    def __init__(
        self, num_layers: int, intermediate_size: int, statistics: GlobalStatistics | None, *, runner_refines: bool
    ) -> None:
        self.problem = _problem(statistics, runner_refines)
        self.budgets = (intermediate_size,) * num_layers
        self._tables: Mapping[str, RefinementTable] = {}
        self._model_gates = None if statistics is None else statistics.mean_abs_gate
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
        """Raises MissingStatisticsError for what was not measured, InvalidRequestError beyond the measured range; the
        params' lambda is in [0, 1]."""
        if self.problem is not None:
            raise MissingStatisticsError(f"glass_refine is unavailable: {self.problem}", param="glass_refine")
        if params.profile not in self._tables:
            raise MissingStatisticsError(
                f"glass_refine is unavailable for glass_profile {params.profile!r}; it is measured for "
                f"{', '.join(self._tables)}",
                param="glass_refine",
            )
        lambda_ = refined_lambda(params)
        if lambda_ < 1.0 and self._model_gates is None:
            raise MissingStatisticsError(
                f"lambda {lambda_:g} is unavailable with glass_refine: the artifact lacks mean_abs_gate, what the "
                f"model's gates do; {_HOW_TO_MEASURE}",
                param="lambda",
            )
        self._tables[params.profile].check(params.sparsity)

    def plan(self, params: SparsityParams, local: LocalStatistics | None = None) -> SparsityPlan:
        """The refined plan that reads 1 - sparsity of the FFN on average; `local` is what the prompt did, which only a
        lambda < 1 looks at: one token's has no gate that counts, and is ranked by the model's alone.

        Raises as `check`; EngineFailureError when the prompt's gates are NaN or infinite, ValueError when they are
        missing (a fault of the caller).
        """
        self.check(params)
        refinement, lambda_ = self._refinements(params.profile, params.sparsity), refined_lambda(params)
        gates = _prompt_gates(local) if lambda_ < 1.0 else None
        if gates is None:
            lambda_ = 1.0
        else:
            refinement = self._mixed(refinement, gates, lambda_)
        return SparsityPlan(
            method=params.method,
            profile=params.profile,
            lambda_=lambda_,
            sparsity_requested=params.sparsity,
            intermediate_size=self.budgets[0],
            neurons=self._pool,
            refinement=refinement,
        )

    def _mixed(self, refinement: Refinement, gates: FloatArray, lambda_: float) -> Refinement:
        """With scores of u by the prompt's E|g| too, (num_layers, m)."""
        assert self._model_gates is not None  # checked
        up = mix_gates(refinement.weights.up, prompt=gates, model=self._model_gates, lambda_=lambda_)
        return replace(refinement, weights=replace(refinement.weights, up=up))

    def _refinement(self, profile: str, sparsity: float) -> Refinement:
        table = self._tables[profile]
        return Refinement(table.weights, table.thresholds_at(sparsity), reads=1.0 - sparsity)


def mix_gates(up: FloatArray, *, prompt: FloatArray, model: FloatArray, lambda_: float) -> FloatArray:
    """`up` times the gate factor (module docstring), computed in float64; all arrays (num_layers, m) float32.

    Raises EngineFailureError when that is not finite.
    """
    relative = prompt.astype(np.float64) / np.maximum(model, GATE_FLOOR)
    with np.errstate(over="ignore", invalid="ignore"):
        mixed: FloatArray = (up * ((1.0 - lambda_) * relative + lambda_)).astype(np.float32)
    if not np.isfinite(mixed).all():
        raise EngineFailureError("cannot score neurons for this prompt: its gates are NaN or infinite")
    return mixed


def _prompt_gates(local: LocalStatistics | None) -> FloatArray | None:
    """E|g| of the prompt, None for one token."""
    if local is None or local.sum_gates is None:
        raise ValueError("lambda < 1 with refinement needs the prompt's gates, but its statistics have none")
    return local.mean_abs_gate()


def _problem(statistics: GlobalStatistics | None, runner_refines: bool) -> str | None:
    if not runner_refines:
        return "this runner cannot refine"
    if statistics is None:
        return f"there is no artifact; {_HOW_TO_MEASURE}"
    return None if statistics.refinement else f"the artifact lacks thresholds; {_HOW_TO_MEASURE}"
