"""One run of the long-form evaluation: sample the answers, score every condition, collect the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.divergence import perplexity
from glass_core.offline.evaluate.answers import TEMPERATURE, TOP_P, Answer, max_steps, sample_answers
from glass_core.offline.evaluate.conditions import Sweep, evaluation_selectors
from glass_core.offline.evaluate.longform import ConditionScore, dense_nll, run_dense, score_conditions
from glass_core.offline.generation import cache_for
from glass_core.offline.progress import Progress
from glass_core.offline.provenance import machine, versions
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.selection import PlanSelector
from glass_core.text import TextProcessor

PROTOCOL = (
    "long-form: the dense model samples an answer; every condition is teacher-forced on it with dense prompt KV; all "
    "answer tokens but the first are scored"
)


@dataclass(frozen=True, slots=True)
class LongformRun:
    """A loaded model, its artifact (with the file it came from), and what to evaluate."""

    model: TorchModel
    model_name: str
    text: TextProcessor
    artifact: tuple[GlobalStatistics, Path] | None
    sweep: Sweep
    max_new_tokens: int
    seed: int
    progress: Progress

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise ConfigurationError(
                f"max_new_tokens must be at least 2 (the first answer token is not scored), got {self.max_new_tokens}"
            )

    def execute(self, instructions: Sequence[str]) -> dict[str, Any]:
        """`dense` and `rows` of the result. Checks every condition before anything slow starts."""
        selector = self._selector()
        conditions = [
            ConditionScore(params, selector.effective_lambda(params)) for params in self.sweep.conditions(selector)
        ]
        answers = [answer for answer in self._answers(instructions) if len(answer.token_ids) > 1]
        if not answers:
            raise ConfigurationError("every answer was empty: nothing to score")
        nll = self._score(answers, selector, conditions)
        num_tokens = sum(len(answer.token_ids) - 1 for answer in answers)
        return {
            "dense": {"ppl": perplexity(nll, num_tokens), "num_tokens": num_tokens, "num_answers": len(answers)},
            "rows": [condition.row() for condition in conditions],
        }

    def _selector(self) -> PlanSelector:
        spec = self.model.spec
        # only the runner's magnitudes are wanted, no KV memory
        smallest_cache = cache_for(spec, num_sequences=1, num_tokens=1, bytes_per_value=self.model.dtype.itemsize)
        return PlanSelector(
            num_layers=spec.num_layers,
            intermediate_size=spec.intermediate_size,
            statistics=None if self.artifact is None else self.artifact[0],
            magnitudes=TorchRunner(self.model, smallest_cache).neuron_magnitudes,
            selectors=evaluation_selectors(),
        )

    def _answers(self, instructions: Sequence[str]) -> list[Answer]:
        steps = max_steps(len(instructions), self.max_new_tokens)
        with self.progress.task("sampling dense answers", steps) as advance:
            return sample_answers(
                self.model,
                self.text,
                instructions,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                on_step=advance,
            )

    def _score(self, answers: Sequence[Answer], selector: PlanSelector, conditions: Sequence[ConditionScore]) -> float:
        """Score everything; returns the dense model's total negative log-likelihood."""
        nll = 0.0
        with self.progress.task("scoring answers", len(answers)) as advance:
            for answer in answers:
                dense = run_dense(self.model, answer)
                score_conditions(self.model, selector, dense, conditions)
                nll += dense_nll(dense)
                advance()
        return nll

    def conditions(self, prompts: str) -> dict[str, Any]:
        """What the result depends on; `prompts` names the prompt file."""
        statistics, path = (None, None) if self.artifact is None else self.artifact
        return {
            "protocol": PROTOCOL,
            "model": self.model_name,
            "fingerprint": self.model.fingerprint,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "prompts": prompts,
            "max_new_tokens": self.max_new_tokens,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "seed": self.seed,
            "artifact": None if path is None else path.name,
            "artifact_corpus": None if statistics is None else dict(statistics.manifest.corpus),
            "machine": machine(),
            "versions": versions(),
        }
