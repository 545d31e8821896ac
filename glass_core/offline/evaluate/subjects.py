"""Whose predictions are scored: the torch model itself, or the native runner on the same prompt and answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.engine.runner_choice import NATIVE, TORCH
from glass_core.offline.evaluate.conditions import ORACLE, evaluation_selectors
from glass_core.offline.evaluate.longform import DenseAnswer, predict_answer
from glass_core.offline.evaluate.refined import RefinedRow, RefinedStep, TorchRows, decode_refined
from glass_core.offline.generation import cache_for
from glass_core.runners.base import Runner
from glass_core.runners.native.scoring import ForcedText, NativeRowScorer, NativeScorer
from glass_core.runners.native.types import Floats
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector

Prediction = tuple[Tensor, float]
RefinedPairs = Sequence[tuple[SparsityParams, DenseAnswer]]


class Subject(Protocol):
    """Predicts answers: under a static condition one at a time, with neurons chosen from its own statistics as it would
    when serving; under refined ones many side by side."""

    @property
    def runner(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def selector(self) -> PlanSelector: ...

    def begin(self, dense: DenseAnswer) -> None:
        """The answer that `predict` predicts from now on, and the dense reference on it."""
        ...

    def predict(self, params: SparsityParams) -> Prediction:
        """Log-probabilities (n, vocab) of the scored tokens under a static condition, and the share of FFN
        weights read for them."""
        ...

    def decode_refined(self, pairs: RefinedPairs) -> Iterator[RefinedStep]:
        """A row for each refined condition on an answer, all side by side."""
        ...


class TorchSubject:
    """The reference model."""

    runner = TORCH

    def __init__(self, model: TorchModel, statistics: GlobalStatistics | None) -> None:
        self._model = model
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.selector = model_selector(model, statistics)
        self._dense: DenseAnswer | None = None

    def begin(self, dense: DenseAnswer) -> None:
        self._dense = dense

    def predict(self, params: SparsityParams) -> Prediction:
        dense = self._dense
        assert dense is not None
        observed = dense.answer_statistics if params.method == ORACLE else dense.prompt_statistics
        plan = self.selector.select(params, observed)
        return predict_answer(self._model, dense, plan), _static_reads(plan)

    def decode_refined(self, pairs: RefinedPairs) -> Iterator[RefinedStep]:
        rows = refined_rows(self.selector, pairs)
        return decode_refined(TorchRows(self._model, rows), rows)


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

    def begin(self, dense: DenseAnswer) -> None:
        self._continuation, self._device = dense.answer.token_ids[:-1], dense.log_probs.device
        self._prompt_statistics = self.scorer.read_prompt(dense.answer.prompt)

    def predict(self, params: SparsityParams) -> Prediction:
        plan = self.selector.select(params, self._observed(params))
        return self._log_probs(self.scorer.force(self._continuation, plan)), _static_reads(plan)

    def decode_refined(self, pairs: RefinedPairs) -> Iterator[RefinedStep]:
        rows = refined_rows(self.selector, pairs)
        self._device = rows[0].dense.log_probs.device
        texts = [ForcedText(row.dense.answer.prompt, row.dense.answer.token_ids[:-1], row.plan) for row in rows]
        runner = self.scorer.runner

        def run(index: int, live: Sequence[int], scales: Sequence[float]) -> tuple[Tensor, list[float]]:
            logits, reads = scorer.step(index, live, scales)
            return self._log_probs(logits), reads

        with NativeRowScorer(runner.header, texts, num_threads=runner.num_threads) as scorer:
            yield from decode_refined(run, rows)

    def _log_probs(self, logits: Floats) -> Tensor:
        return torch.log_softmax(torch.from_numpy(logits).to(self._device), dim=-1)

    def _observed(self, params: SparsityParams) -> LocalStatistics:
        if params.method == ORACLE:
            return self.scorer.observe(self._continuation)[1]
        assert self._prompt_statistics is not None
        return self._prompt_statistics


def _static_reads(plan: SparsityPlan | None) -> float:
    return 1.0 if plan is None else 1.0 - plan.sparsity


def refined_rows(selector: PlanSelector, pairs: RefinedPairs) -> list[RefinedRow]:
    """Rows with their plans, which no prompt is needed for."""
    found = []
    for params, dense in pairs:
        plan = selector.select(params, None)
        assert plan is not None
        found.append(RefinedRow(dense, plan))
    return found


def model_selector(model: TorchModel, statistics: GlobalStatistics | None) -> PlanSelector:
    """The reference model's `evaluation_selector`."""
    # only the runner's magnitudes are wanted, no KV memory
    smallest = cache_for(model.spec, num_sequences=1, num_tokens=1, bytes_per_value=model.dtype.itemsize)
    return evaluation_selector(TorchRunner(model, smallest), statistics)


def evaluation_selector(runner: Runner, statistics: GlobalStatistics | None) -> PlanSelector:
    """A runner's selector of every servable method, and of the oracle."""
    return PlanSelector(
        num_layers=runner.spec.num_layers,
        intermediate_size=runner.spec.intermediate_size,
        statistics=statistics,
        magnitudes=runner.neuron_magnitudes,
        selectors=evaluation_selectors(),
        runner_refines=runner.refines,
        choose=runner.choose_neurons,
    )
