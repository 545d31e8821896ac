"""The sampler's filters and repetition penalty against HF's logits processors, applied in the order of `generate`."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glass_core.api import SamplingParams
from glass_core.runners.base import SampleInput
from glass_core.runners.sampling import adjust_logits, candidate_distribution

VOCAB_SIZE = 200
PROMPT, GENERATED = (3, 5, 5, 190), (7, 3)


def hf_distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Normalized probabilities, (vocab,)."""
    processors: list[Any] = [RepetitionPenaltyLogitsProcessor(params.repetition_penalty)]
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    processors += [TopPLogitsWarper(params.top_p), MinPLogitsWarper(params.min_p)]
    tokens: Any = torch.tensor([PROMPT + GENERATED])  # transformers asks for a LongTensor, which nothing is typed as
    scores: torch.Tensor = LogitsProcessorList(processors)(tokens, logits[None].clone())
    return scores[0].softmax(dim=-1)


@pytest.mark.parametrize("top_k", [0, 1, 25])
@pytest.mark.parametrize("top_p", [1.0, 0.83, 0.2])
@pytest.mark.parametrize("min_p", [0.0, 0.07])
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_distribution_equals_hf(top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    logits = 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(top_k))
    params = SamplingParams(
        max_tokens=1,
        seed=0,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=1.3,
    )
    scores = adjust_logits(logits.numpy(), SampleInput(params, PROMPT, GENERATED))
    candidates, probabilities = candidate_distribution(scores, params)
    actual = np.zeros(VOCAB_SIZE)
    actual[candidates] = probabilities / probabilities.sum()
    np.testing.assert_allclose(actual, hf_distribution(logits, params).numpy(), atol=1e-6)
