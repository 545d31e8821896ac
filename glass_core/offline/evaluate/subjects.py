"""Whose predictions are scored: the torch model itself, or the native runner on the same prompt and answer."""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.engine.runner_choice import NATIVE, TORCH
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.conditions import ORACLE, evaluation_selectors
from glass_core.offline.evaluate.longform import DenseAnswer, predict_answer
from glass_core.offline.evaluate.refined import predict_refined, run_controlled
from glass_core.offline.generation import cache_for
from glass_core.runners.base import Runner
from glass_core.runners.native.scoring import NativeScorer
from glass_core.runners.native.types import Floats
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector

Prediction = tuple[Tensor, float]


class Subject(Protocol):
    """Predicts one answer at a time; chooses neurons from its own statistics, as it would when serving."""

    @property
    def runner(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def selector(self) -> PlanSelector: ...

    def begin(self, answer: Answer, dense: DenseAnswer) -> None:
        """The answer that is predicted from now on, and the dense reference on it."""
        ...

    def predict(self, params: SparsityParams) -> Prediction:
        """Log-probabilities (n, vocab) of the scored tokens under a condition, and the share of FFN
        weights read for them."""
        ...


class TorchSubject:
    """The reference model."""

    runner = TORCH

    def __init__(self, model: TorchModel, statistics: GlobalStatistics | None) -> None:
        self._model = model
        self.dtype = str(model.dtype).removeprefix("torch.")
        # only the runner's magnitudes are wanted, no KV memory
        smallest = cache_for(model.spec, num_sequences=1, num_tokens=1, bytes_per_value=model.dtype.itemsize)
        self.selector = evaluation_selector(TorchRunner(model, smallest), statistics)
        self._dense: DenseAnswer | None = None

    def begin(self, answer: Answer, dense: DenseAnswer) -> None:
        self._dense = dense

    def predict(self, params: SparsityParams) -> Prediction:
        dense = self._dense
        assert dense is not None
        observed = dense.answer_statistics if params.method == ORACLE else dense.prompt_statistics
        plan = self.selector.select(params, observed)
        if plan is not None and plan.refinement is not None:
            return predict_refined(self._model, dense, plan)
        return predict_answer(self._model, dense, plan), _static_reads(plan)


@dataclass(slots=True, eq=False)
class NativeSubject:
    """The native runner behind a scorer."""

    scorer: NativeScorer
    selector: PlanSelector
    runner: str = field(default=NATIVE, init=False)
    _continuation: tuple[int, ...] = field(default=(), init=False)
    _device: torch.device = field(default=torch.device("cpu"), init=False)
    _prompt_statistics: LocalStatistics | None = field(default=None, init=False)

    @classmethod
    def on(cls, scorer: NativeScorer, statistics: GlobalStatistics | None) -> "NativeSubject":
        return cls(scorer, evaluation_selector(scorer.runner, statistics))

    @property
    def dtype(self) -> str:
        return self.scorer.runner.format

    def begin(self, answer: Answer, dense: DenseAnswer) -> None:
        self._continuation, self._device = answer.token_ids[:-1], dense.log_probs.device
        self._prompt_statistics = self.scorer.read_prompt(answer.prompt)

    def predict(self, params: SparsityParams) -> Prediction:
        plan = self.selector.select(params, self._observed(params))
        if plan is not None and plan.refinement is not None:
            step = partial(self._refined_step, plan)
            return run_controlled(step, len(self._continuation), plan.refinement.reads)
        return self._log_probs(self.scorer.force(self._continuation, plan)), _static_reads(plan)

    def _refined_step(self, plan: SparsityPlan, index: int, scale: float) -> tuple[Tensor, float]:
        logits, reads = self.scorer.force_token(self._continuation[index], index, plan, scale)
        return self._log_probs(logits), reads

    def _log_probs(self, logits: Floats) -> Tensor:
        return torch.log_softmax(torch.from_numpy(logits).to(self._device), dim=-1)

    def _observed(self, params: SparsityParams) -> LocalStatistics:
        if params.method == ORACLE:
            return self.scorer.observe(self._continuation)[1]
        assert self._prompt_statistics is not None
        return self._prompt_statistics


def _static_reads(plan: SparsityPlan | None) -> float:
    return 1.0 if plan is None else 1.0 - plan.sparsity


def evaluation_selector(runner: Runner, statistics: GlobalStatistics | None) -> PlanSelector:
    """A runner's selector of every servable method, and of the oracle."""
    return PlanSelector(
        num_layers=runner.spec.num_layers,
        intermediate_size=runner.spec.intermediate_size,
        statistics=statistics,
        magnitudes=runner.neuron_magnitudes,
        selectors=evaluation_selectors(),
        runner_refines=runner.refines,
    )
