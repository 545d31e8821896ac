"""The `long-form` protocol: how much an answer suffers when it is decoded with a plan made from its prompt alone.

The dense model answers; then each condition is teacher-forced on that answer, with the prompt's keys and values dense
and shared, as in the server. Scored are all answer tokens but the first: that one is drawn from the dense prefill's
logits whatever the condition, so it would only dilute the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.offline.divergence import perplexity, token_kl
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.conditions import ORACLE
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import Ffn, TorchModel
from glass_core.runners.torch_runner.statistics import StatisticsCollector
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Sums over one answer's scored tokens, in nats; `ffn_reads` is the share of FFN weights read per token."""

    num_tokens: int
    nll: float
    kl: float
    num_agreeing: int
    ffn_reads: float


@dataclass(slots=True)
class ConditionScore:
    """The scores of all answers under one condition. `lambda_` is the one in effect, None when nothing is fused."""

    params: SparsityParams
    lambda_: float | None
    answers: list[AnswerScore] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(score.num_tokens for score in self.answers)

    def row(self) -> dict[str, str | float | int | bool | None]:
        """The result's row: token-weighted means. `sparsity` is the requested one, `ffn_reads` what was kept."""
        total = self.num_tokens
        return {
            "method": self.params.method,
            "sparsity": self.params.sparsity,
            "lambda": self.lambda_,
            "profile": self.params.profile,
            "refine": False,
            "ppl": perplexity(sum(score.nll for score in self.answers), total),
            "kl": sum(score.kl for score in self.answers) / total,
            "agreement": sum(score.num_agreeing for score in self.answers) / total,
            "ffn_reads": sum(score.ffn_reads * score.num_tokens for score in self.answers) / total,
            "num_tokens": total,
        }


@dataclass(frozen=True, slots=True, eq=False)
class DenseAnswer:
    """The dense model on one answer: `log_probs` (n, vocab) and `targets` (n,) of the n scored tokens, the prompt's
    cache, and the statistics of the prompt and of the answer."""

    continuation: Tensor
    targets: Tensor
    log_probs: Tensor
    prompt_cache: SequenceCache
    prompt_statistics: LocalStatistics
    answer_statistics: LocalStatistics


@torch.no_grad()
def run_dense(model: TorchModel, answer: Answer) -> DenseAnswer:
    """Prompt and answer through the dense model. The answer needs at least two tokens."""
    prompt = torch.tensor(answer.prompt, device=model.device)
    tokens = torch.tensor(answer.token_ids, device=model.device)
    cache = SequenceCache(model.spec)
    _, prompt_statistics = _observe(model, prompt, cache)
    prompt_cache = cache.fork()
    log_probs, answer_statistics = _observe(model, tokens[:-1], cache)
    return DenseAnswer(tokens[:-1], tokens[1:], log_probs, prompt_cache, prompt_statistics, answer_statistics)


@torch.no_grad()
def score_answer(model: TorchModel, dense: DenseAnswer, plan: SparsityPlan | None) -> AnswerScore:
    """Teacher-force the plan (None = dense) on an answer."""
    ffn = model.dense_ffn if plan is None else PackedViews(model, plan).ffn
    log_probs = _predict(model, dense.continuation, dense.prompt_cache.fork(), ffn)
    return AnswerScore(
        num_tokens=len(dense.targets),
        nll=-float(log_probs.gather(1, dense.targets[:, None]).sum()),
        kl=float(token_kl(dense.log_probs, log_probs).sum()),
        num_agreeing=int((log_probs.argmax(dim=-1) == dense.log_probs.argmax(dim=-1)).sum()),
        ffn_reads=1.0 if plan is None else 1.0 - plan.sparsity,
    )


def score_conditions(
    model: TorchModel, selector: PlanSelector, dense: DenseAnswer, conditions: Sequence[ConditionScore]
) -> None:
    """Add this answer's score to every condition."""
    for condition in conditions:
        observed = dense.answer_statistics if condition.params.method == ORACLE else dense.prompt_statistics
        condition.answers.append(score_answer(model, dense, selector.select(condition.params, observed)))


def dense_nll(dense: DenseAnswer) -> float:
    """Negative log-likelihood of the scored tokens under the dense model, summed, in nats."""
    return -float(dense.log_probs.gather(1, dense.targets[:, None]).sum())


def _observe(model: TorchModel, token_ids: Tensor, cache: SequenceCache) -> tuple[Tensor, LocalStatistics]:
    """Dense predictions (n, vocab) of the next tokens, and the statistics of these."""
    collector = StatisticsCollector(model.spec, len(token_ids))

    def ffn(layer: int, x: Tensor) -> Tensor:
        z = model.ffn_activation(layer, x)
        collector.add(layer, z)
        return model.ffn_output(layer, z)

    return _predict(model, token_ids, cache, ffn), collector.result()


def _predict(model: TorchModel, token_ids: Tensor, cache: SequenceCache, ffn: Ffn) -> Tensor:
    """Log-probabilities (n, vocab) of the token after each of token_ids (n,), which continue the cache."""
    start = cache.num_tokens
    positions = torch.arange(start, start + len(token_ids), device=token_ids.device)
    hidden = model.forward(token_ids, positions, attention=cache, ffn=ffn)
    return torch.log_softmax(model.logits(hidden), dim=-1)
