"""From a batch's logits to its tokens, row by row: what goes wrong in one row concerns that row alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.api import TokenLogprobs
from glass_core.errors import EngineFailureError
from glass_core.runners.base import SampleInput
from glass_core.runners.sampling import NOT_FINITE, is_plain_greedy, sample_token, token_logprobs


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row's token and, where asked for, log-probabilities; or the `error` that left it without."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


def draw_tokens(logits: Tensor, samples: Sequence[SampleInput]) -> list[Drawn]:
    """One draw per row of logits (n, vocab). Plain greedy rows never leave the device."""
    best: list[int] = logits.argmax(dim=-1).tolist()
    finite: list[bool] = torch.isfinite(logits).all(dim=-1).tolist()
    return [
        _draw(logits[index], sample, best[index]) if finite[index] else Drawn(error=NOT_FINITE)
        for index, sample in enumerate(samples)
    ]


def _draw(logits: Tensor, sample: SampleInput, best: int) -> Drawn:
    num_logprobs = sample.params.num_logprobs
    if is_plain_greedy(sample) and num_logprobs is None:
        return Drawn(best)
    values = logits.cpu().numpy()
    try:
        token = sample_token(values, sample)
    except EngineFailureError as error:
        return Drawn(error=str(error))
    return Drawn(token, None if num_logprobs is None else token_logprobs(values, token, num_logprobs))
