"""Texts scored and written under a condition: what task suites ask of a language model.

As in the server: the context runs densely, and with it the first token's distribution; neurons are chosen from the
context; all further tokens run under the plan. So continuations of one token score alike at every sparsity.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.longform import observe_tokens, predict_tokens
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.model import Ffn, TorchModel
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.selection import PlanSelector
from glass_core.text import TextProcessor


class Likelihood(NamedTuple):
    """Of a continuation: log-probability in nats, and whether greedy decoding would have written it."""

    log_prob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class TaskModel:
    """The reference model under one condition, static or dense."""

    model: TorchModel
    text: TextProcessor
    selector: PlanSelector
    params: SparsityParams

    @torch.no_grad()
    def likelihood(self, context: str, continuation: str) -> Likelihood:
        """Of a continuation after a context. Raises ConfigurationError when either has no token of its own."""
        given, wanted = self._split(context, continuation)
        cache = SequenceCache(self.model.spec)
        first, ffn = self._read(given, cache)
        predicted = first if len(wanted) == 1 else torch.cat((first, self._predict(wanted[:-1], cache, ffn)))
        targets = torch.tensor(wanted, device=predicted.device)
        log_probs = predicted.gather(1, targets[:, None]).sum()
        return Likelihood(float(log_probs), bool((predicted.argmax(dim=-1) == targets).all()))

    @torch.no_grad()
    def write(self, context: str, *, until: tuple[str, ...], max_tokens: int) -> str:
        """The greedy continuation, up to and without the first of the `until` strings or a stop token."""
        cache = SequenceCache(self.model.spec)
        predicted, ffn = self._read(self._encode(context), cache)
        written: list[int] = []
        while len(written) < max_tokens:
            token = int(predicted[-1].argmax())
            if token in self.text.stop_token_ids:
                break
            written.append(token)
            if any(stop in self.text.decode(written) for stop in until):
                break
            predicted = self._predict([token], cache, ffn)
        return _before(self.text.decode(written), until)

    def _read(self, context: list[int], cache: SequenceCache) -> tuple[Tensor, Ffn]:
        """The next token's log-probabilities (1, vocab) after a dense context, and the FFN of what follows."""
        log_probs, statistics = observe_tokens(self.model, torch.tensor(context, device=self.model.device), cache)
        plan = self.selector.select(self.params, statistics)
        return log_probs[-1:], self.model.dense_ffn if plan is None else PackedViews(self.model, plan).ffn

    def _predict(self, tokens: list[int], cache: SequenceCache, ffn: Ffn) -> Tensor:
        return predict_tokens(self.model, torch.tensor(tokens, device=self.model.device), cache, ffn)

    def _encode(self, context: str) -> list[int]:
        tokens = self.text.encode_prompt(context)
        if not tokens:
            raise ConfigurationError("a context needs at least one token")
        return tokens

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the context's own end."""
        given, whole = self._encode(context), self.text.encode_prompt(context + continuation)
        if len(whole) <= len(given):
            raise ConfigurationError(f"the continuation {continuation!r} adds no token to its context")
        return whole[: len(given)], whole[len(given) :]


def _before(text: str, until: tuple[str, ...]) -> str:
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]
