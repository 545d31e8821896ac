"""What an evaluation sweeps over: methods x sparsities x lambdas x profiles, without combinations that say nothing."""

from dataclasses import dataclass
from typing import Any, ClassVar

from glass_core.api import DENSE_METHOD, SparsityParams
from glass_core.sparsity.budget import UNIFORM
from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selection import PlanSelector
from glass_core.sparsity.selectors import load_selectors
from glass_core.sparsity.selectors.base import ModelEvidence, Need, PromptEvidence, Selector

ORACLE = "oracle"


def condition_json(params: SparsityParams, lambda_: float | None) -> dict[str, Any]:
    """A condition's fields of a result row; `lambda_` is the one in effect, None when nothing is fused."""
    return {
        "method": params.method,
        "sparsity": params.sparsity,
        "lambda": lambda_,
        "profile": params.profile,
        "refine": params.refine,
    }


@dataclass(frozen=True, slots=True)
class Oracle:
    """Selects by the statistic of the answer itself, which no server can know: the bound for any static plan.

    It is an ordinary prompt-side method whose caller hands it the answer's statistics instead of the prompt's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOCAL})
    fuses: ClassVar[bool] = False

    def prompt_scores(self, prompt: PromptEvidence) -> FloatArray:
        return prompt.local.l1()

    def model_scores(self, model: ModelEvidence) -> None:
        return None


def evaluation_selectors() -> dict[str, Selector]:
    """Every servable method, and the oracle."""
    return {**load_selectors(), ORACLE: Oracle()}


@dataclass(frozen=True, slots=True)
class Sweep:
    """The grid as asked for on the command line."""

    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    lambdas: tuple[float | None, ...] = (None,)
    profiles: tuple[str, ...] = (UNIFORM,)
    seed: int = 0
    refine: tuple[bool, ...] = (False,)

    def conditions(self, selector: PlanSelector) -> list[SparsityParams]:
        """One entry per distinct condition, in the order of the flags; lambda only where the method fuses; refined ones
        last, without method or lambda.

        Raises InvalidRequestError or MissingStatisticsError for what cannot be served.
        """
        static = self._static_conditions(selector) if False in self.refine else []
        return static + (self._refined_conditions(selector) if True in self.refine else [])

    def _refined_conditions(self, selector: PlanSelector) -> list[SparsityParams]:
        found = [
            SparsityParams(sparsity, profile=profile, seed=self.seed, refine=True)
            for profile in dict.fromkeys(self.profiles)
            for sparsity in dict.fromkeys(self.sparsities)
            if sparsity > 0
        ]
        for params in found:
            selector.check(params)
        return found

    def _static_conditions(self, selector: PlanSelector) -> list[SparsityParams]:
        fusing = {name for name, method in evaluation_selectors().items() if method.fuses}
        found: dict[SparsityParams, None] = {}
        for method in self.methods:
            for profile in self.profiles if method != DENSE_METHOD else (UNIFORM,):
                for sparsity in self.sparsities if method != DENSE_METHOD else (0.0,):
                    for lambda_ in self.lambdas if method in fusing and sparsity > 0 else (None,):
                        params = SparsityParams(sparsity, lambda_, method, profile, self.seed)
                        selector.check(params)
                        found[params] = None
        return list(found)
