"""The oracle comparison: every condition's sets against the answers' own, averaged over answers with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from glass_core.api import DENSE_METHOD, SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.bootstrap import Bootstrap
from glass_core.offline.evaluate.condition_scores import chunks
from glass_core.offline.evaluate.conditions import condition_json
from glass_core.offline.evaluate.evaluation import LongformRun
from glass_core.offline.evaluate.longform import DenseAnswer, run_dense
from glass_core.offline.evaluate.overlap import AnswerOracle, Overlap, refined_masks
from glass_core.offline.evaluate.subjects import model_selector
from glass_core.sparsity.selection import PlanSelector

PROTOCOL = (
    "oracle: per layer, the Jaccard index of the neurons chosen before an answer (refined: token by token) with the "
    "best by the answer's own statistic, and with each token's own best"
)


@dataclass(frozen=True, slots=True)
class OracleRun:
    """What a long-form run has, asked another question."""

    longform: LongformRun

    def execute(self, instructions: Sequence[str]) -> dict[str, Any]:
        """`bootstrap` and `rows`. Raises ConfigurationError when a condition is dense: it has no set."""
        selector = model_selector(self.longform.model, self.longform.statistics)
        wanted = self.longform.sweep.conditions(selector)
        if any(params.is_dense or params.method == DENSE_METHOD for params in wanted):
            raise ConfigurationError("dense keeps every neuron: give methods and sparsities above 0")
        answers = self.longform.answers_to(instructions)
        found = self._overlaps(answers, wanted, selector)
        bootstrap = Bootstrap.over(len(answers), self.longform.seed)
        return {
            "num_answers": len(answers),
            "num_tokens": sum(len(answer.token_ids) - 1 for answer in answers),
            "bootstrap": bootstrap.description(),
            "rows": [
                _row(params, selector.effective_lambda(params), overlaps, bootstrap)
                for params, overlaps in zip(wanted, found, strict=True)
            ],
        }

    def _overlaps(
        self, answers: Sequence[Answer], wanted: Sequence[SparsityParams], selector: PlanSelector
    ) -> list[list[Overlap]]:
        """Of every condition, on every answer."""
        found: list[list[Overlap]] = [[] for _ in wanted]
        with self.longform.progress.task("comparing answers", len(answers)) as advance:
            for chunk in chunks(answers, wanted, self.longform.model.spec.vocab_size):
                dense = [run_dense(self.longform.model, answer) for answer in chunk]
                kept = {params: self._masks(dense, params, selector) for params in wanted if params.refine}
                for index, one in enumerate(dense):
                    oracle = AnswerOracle(self.longform.model, selector, one)
                    for params, overlaps in zip(wanted, found, strict=True):
                        masks = kept.get(params)
                        overlaps.append(
                            oracle.overlap(params) if masks is None else oracle.refined_overlap(params, masks[index])
                        )
                    advance()
        return found

    def _masks(self, dense: Sequence[DenseAnswer], params: SparsityParams, selector: PlanSelector) -> list[Tensor]:
        plan = selector.select(params, None)
        assert plan is not None
        return refined_masks(self.longform.model, dense, plan)

    def conditions(self, prompts: str, command: str) -> dict[str, Any]:
        """As the long-form run's."""
        return {**self.longform.conditions(prompts, command), "protocol": PROTOCOL}


def _row(
    params: SparsityParams, lambda_: float | None, overlaps: Sequence[Overlap], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Means over answers, each counting once: over all layers, and `layers` with an entry per layer."""
    by_answer = {name: np.stack([getattr(one, name) for one in overlaps]) for name in ("jaccard", "token_jaccard")}
    return {
        **condition_json(params, lambda_),
        **_means({name: values.mean(axis=1) for name, values in by_answer.items()}, bootstrap),
        "layers": [
            _means({name: values[:, layer] for name, values in by_answer.items()}, bootstrap)
            for layer in range(by_answer["jaccard"].shape[1])
        ],
    }


def _means(by_answer: dict[str, Any], bootstrap: Bootstrap) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in by_answer.items():
        found[name] = float(values.mean())
        found[f"{name}_interval"] = bootstrap.interval(values.tolist(), [1] * len(values))
    return found
