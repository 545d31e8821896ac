"""The `long-form` protocol: how much an answer suffers when it is decoded with a plan made from its prompt alone.

The dense model answers; then each condition is teacher-forced on that answer, with the prompt's keys and values dense
and shared, as in the server. Scored are all answer tokens but the first: that one is drawn from the dense prefill's
logits whatever the condition, so it would only dilute the difference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.offline.evaluate.answers import Answer
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import Ffn, TorchModel
from glass_core.runners.torch_runner.statistics import StatisticsCollector
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan


@dataclass(frozen=True, slots=True, eq=False)
class DenseAnswer:
    """The dense model on one answer: `log_probs` (n, vocab) and `targets` (n,) of the n scored tokens, which follow
    the tokens of `continuation` (n,); the prompt's cache, and the statistics of the prompt and of the answer."""

    answer: Answer
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
    _, prompt_statistics = observe_tokens(model, prompt, cache)
    prompt_cache = cache.fork()
    log_probs, answer_statistics = observe_tokens(model, tokens[:-1], cache)
    return DenseAnswer(answer, tokens[:-1], tokens[1:], log_probs, prompt_cache, prompt_statistics, answer_statistics)


@torch.no_grad()
def predict_answer(model: TorchModel, dense: DenseAnswer, plan: SparsityPlan | None) -> Tensor:
    """Log-probabilities (n, vocab) of the scored tokens, teacher-forced under the plan (None = dense)."""
    ffn = model.dense_ffn if plan is None else PackedViews(model, plan).ffn
    return predict_tokens(model, dense.continuation, dense.prompt_cache.fork(), ffn)


def observe_tokens(model: TorchModel, token_ids: Tensor, cache: SequenceCache) -> tuple[Tensor, LocalStatistics]:
    """Dense predictions (n, vocab) of the next tokens, and the statistics of these."""
    collector = StatisticsCollector(model.spec, len(token_ids))

    def ffn(layer: int, x: Tensor) -> Tensor:
        z = model.ffn_activation(layer, x)
        collector.add(layer, z)
        return model.ffn_output(layer, z)

    return predict_tokens(model, token_ids, cache, ffn), collector.result()


def predict_tokens(model: TorchModel, token_ids: Tensor, cache: SequenceCache, ffn: Ffn) -> Tensor:
    """Log-probabilities (n, vocab) of the token after each of token_ids (n,), which continue the cache."""
    start = cache.num_tokens
    positions = torch.arange(start, start + len(token_ids), device=token_ids.device)
    hidden = model.forward(token_ids, positions, attention=cache, ffn=ffn)
    return torch.log_softmax(model.logits(hidden), dim=-1)
