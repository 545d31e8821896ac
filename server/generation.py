"""Generation end to end: token ids in, text events out, for all choices of one HTTP request.

Each choice is one engine request; the consumer gets one sequence of batches, at most one a step, for all of them.
Closing `generate` early, which a disconnect does, closes every stream, and that aborts the sequences in the engine.
"""

import hashlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from glass_core.api import DENSE_METHOD, EngineClient, Finish, FinishReason, GenerationRequest, TokenEvent
from glass_core.errors import (
    ContextLengthError,
    EngineFailureError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
)
from glass_core.text import Detokenizer, TextProcessor
from server.logprobs import ShownToken, TokenLedger
from server.metrics import ServerMetrics
from server.reading import TokenEvents, open_reader

SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to make: the engine request, and the strings that end its text."""

    index: int
    request: GenerationRequest
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a choice, possibly empty: the first one says that its first token has arrived. `tokens` are those
    of the text, when log-probabilities were asked for."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """A choice is complete. `reason` is what the client sees; `num_tokens` counts up to a stop string; `text` and
    `tokens` are the last ones."""

    index: int
    text: str
    reason: FinishReason
    num_tokens: int
    finish: Finish
    tokens: tuple[ShownToken, ...] = ()


GenerationEvent = Delta | ChoiceEnd
Batch = Sequence[GenerationEvent]


@dataclass(slots=True)
class _Progress:
    """What the consumer knows of one running choice."""

    choice: Choice
    detokenizer: Detokenizer
    token_times: list[float] = field(default_factory=list)
    num_tokens_at_stop: int | None = None
    ledger: TokenLedger = field(default_factory=TokenLedger)


def choice_seeds(seed: int | None, count: int) -> list[int]:
    """One seed per choice: the first is the client's own, so that n = 1 gives the first answer of n = 2."""
    first = secrets.randbits(SEED_BITS) if seed is None else seed % (1 << SEED_BITS)
    return [first, *(_derive_seed(first, index) for index in range(1, count))]


def _derive_seed(seed: int, index: int) -> int:
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def fit_context(num_prompt: int, max_tokens: int | None, max_model_len: int, *, param: str) -> int:
    """Tokens an answer may have; the rest of the context when the client set no limit.

    Raises ContextLengthError with the three numbers, InvalidRequestError for an empty prompt.
    """
    if num_prompt == 0:
        raise InvalidRequestError(f"{param}: the prompt is empty, at least one token is needed", param=param)
    wanted = 1 if max_tokens is None else max_tokens
    if num_prompt + wanted > max_model_len:
        raise ContextLengthError(
            f"This model's context holds {max_model_len} tokens; the prompt has {num_prompt} and the answer asks for "
            f"{'at least ' if max_tokens is None else ''}{wanted}",
            param=param,
        )
    return max_model_len - num_prompt if max_tokens is None else max_tokens


class Generator:
    """Runs choices on an engine and records their metrics."""

    def __init__(self, engine: EngineClient, text: TextProcessor, metrics: ServerMetrics) -> None:
        self._engine = engine
        self._text = text
        self._metrics = metrics

    async def generate(self, choices: Sequence[Choice], *, idle_seconds: float) -> AsyncGenerator[Batch, None]:
        """Events of all choices as they come; each choice ends in exactly one ChoiceEnd.

        A batch is what came together; an empty one says that nothing happened for `idle_seconds`. Raises what
        `EngineClient.submit` raises before the first batch, EngineFailureError at any time. Consume it inside
        `contextlib.aclosing`.
        """
        running = {choice.index: self._start(choice) for choice in choices}
        async with AsyncExitStack() as stack:
            stack.callback(self._count_abandoned, running)
            streams = [(choice.index, await self._submit(choice, stack)) for choice in choices]
            reader = await open_reader(streams, idle_seconds, stack)
            while running:
                yield [self._convert(running, index, event) for index, event in await reader.next()]

    def _start(self, choice: Choice) -> _Progress:
        detokenizer = self._text.detokenizer(choice.stop, context=choice.request.prompt_token_ids)
        return _Progress(choice, detokenizer)

    async def _submit(self, choice: Choice, stack: AsyncExitStack) -> TokenEvents:
        try:
            stream = await self._engine.submit(choice.request)
        except (QueueFullError, EngineUnavailableError, ContextLengthError) as error:
            self._metrics.count_rejection(self._engine.info.model_name, _rejection_reason(error))
            raise
        return await stack.enter_async_context(aclosing(stream))

    def _convert(self, running: dict[int, _Progress], index: int, event: TokenEvent) -> GenerationEvent:
        if event.finish is not None:
            return self._end(running.pop(index), event, event.finish)
        progress = running[index]
        text = self._advance(progress, event)
        return Delta(index, text) if event.logprobs is None else Delta(index, text, progress.ledger.release(text))

    def _advance(self, progress: _Progress, event: TokenEvent) -> str:
        """The text a token adds. A stop string found in it ends the sequence at the next step."""
        if event.token_id is None or progress.num_tokens_at_stop is not None:
            return ""
        progress.token_times.append(event.time)
        sampling = progress.choice.request.sampling
        if event.token_id in sampling.stop_token_ids and not sampling.ignore_eos:
            return ""
        if event.logprobs is not None:
            progress.ledger.add(ShownToken(event.token_id, progress.detokenizer.num_decoded, event.logprobs))
        text = progress.detokenizer.push(event.token_id)
        if progress.detokenizer.stopped:
            progress.num_tokens_at_stop = len(progress.token_times)
            self._engine.finish(event.request_id, FinishReason.STOP)
        return text

    def _end(self, progress: _Progress, event: TokenEvent, finish: Finish) -> ChoiceEnd:
        text = self._advance(progress, event) + progress.detokenizer.flush()
        self._metrics.observe_finish(self._engine.info.model_name, finish, progress.token_times)
        stopped = progress.num_tokens_at_stop
        if stopped is None and finish.reason is FinishReason.ABORTED:
            raise EngineFailureError("the request was aborted")
        reason = finish.reason if stopped is None else FinishReason.STOP
        num_tokens = finish.num_generated_tokens if stopped is None else stopped
        tokens = progress.ledger.flush(text, stopped=stopped is not None)
        return ChoiceEnd(progress.choice.index, text, reason, num_tokens, finish, tokens)

    def _count_abandoned(self, running: dict[int, _Progress]) -> None:
        for progress in running.values():
            sparsity = progress.choice.request.sparsity
            method = DENSE_METHOD if sparsity.is_dense else sparsity.method
            self._metrics.count_abandoned(self._engine.info.model_name, method)


def _rejection_reason(error: Exception) -> str:
    if isinstance(error, QueueFullError):
        return "queue_full"
    return "context_length" if isinstance(error, ContextLengthError) else "unavailable"
