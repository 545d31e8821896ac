"""Refined answers token by token, as a server decodes them: each token's scale comes from what those before it read."""

from collections.abc import Callable

import torch
from torch import Tensor

from glass_core.engine.refine_control import ReadsController
from glass_core.offline.evaluate.longform import DenseAnswer, predict_tokens
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.refined import RefinedFfn
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.plan import SparsityPlan

# (number of the token, scale) -> log-probabilities of the next one (1, vocab), share of FFN weights read
TokenStep = Callable[[int, float], tuple[Tensor, float]]


def run_controlled(step: TokenStep, num_tokens: int, reads: float) -> tuple[Tensor, float]:
    """Log-probabilities (n, vocab) and the mean share of FFN weights read, of `num_tokens` tokens promised `reads`."""
    controller = ReadsController(reads)
    predicted: list[Tensor] = []
    for index in range(num_tokens):
        (scale,) = controller.scales(index, index + 1)
        log_probs, token_reads = step(index, scale)
        controller.observe(index, index + 1, token_reads)
        predicted.append(log_probs)
    mean = controller.mean_reads
    return torch.cat(predicted), reads if mean is None else mean


@torch.no_grad()
def predict_refined(model: TorchModel, dense: DenseAnswer, plan: SparsityPlan) -> tuple[Tensor, float]:
    """Teacher-forced under a refined plan: log-probabilities (n, vocab) of the scored tokens, and the mean reads."""
    refinement = plan.refinement
    assert refinement is not None
    cache, views = dense.prompt_cache.fork(), PackedViews(model, plan)

    def step(index: int, scale: float) -> tuple[Tensor, float]:
        ffn = RefinedFfn(model.spec, views, refinement, 1, (scale,))
        log_probs = predict_tokens(model, dense.continuation[index : index + 1], cache, ffn.ffn)
        return log_probs, ffn.reads

    return run_controlled(step, len(dense.continuation), refinement.reads)
