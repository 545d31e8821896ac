"""Batches of generation events to HTTP answers: collected into one JSON object, or framed as server-sent events."""

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from server.errors import INTERNAL_ERROR, describe
from server.generation import Batch, ChoiceEnd
from server.logprobs import ShownToken
from server.routes.build import Answer
from server.schemas.common import usage_json
from server.schemas.glass import report_json
from server.sse import DONE, PING, Envelope, event

logger = logging.getLogger("glass.server")

Json = dict[str, Any]


class ChunkEncoder(Protocol):
    """The part of a stream that differs between endpoints."""

    def start(self, index: int) -> Json | None:
        """The first chunk's choice, if the endpoint has one without generated text."""

    def delta(self, index: int, text: str, tokens: Sequence[ShownToken] = ()) -> Json:
        """The choice of a chunk with new text, and the tokens whose log-probabilities it shows."""
        ...

    def end(self, index: int, reason: str) -> Json:
        """The choice of the last chunk."""
        ...


@dataclass(slots=True)
class ChunkStream:
    """Frames of one streamed answer: `object_name` and encoder are the endpoint's."""

    answer: Answer
    object_name: str
    encoder: ChunkEncoder
    num_choices: int
    _envelopes: dict[int, Envelope] = field(default_factory=dict, init=False)
    _ends: dict[int, ChoiceEnd] = field(default_factory=dict, init=False)

    async def frames(self, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[bytes, None]:
        """One piece per batch with something to send, of one or several events.

        An error before the first piece is raised, a later one becomes an event; `[DONE]` comes last in any case.
        """
        begun = False
        try:
            async with aclosing(batches):
                async for batch in batches:
                    piece = b"".join(self._events(batch)) if batch else PING
                    if piece:
                        begun = True
                        yield piece
        except Exception as error:
            if not begun:
                raise
            yield event(_describe_logged(error)) + DONE

    def _events(self, batch: Batch) -> Iterator[bytes]:
        for item in batch:
            envelope = self._envelopes.get(item.index)
            if envelope is None:
                envelope = self._envelopes[item.index] = self._envelope(item.index)
                yield from self._start(item.index)
            if item.tokens:
                yield event(self._chunk(self.encoder.delta(item.index, item.text, item.tokens)))
            elif item.text:
                yield envelope.fill(item.text)
            if isinstance(item, ChoiceEnd):
                yield from self._end(item)

    def _envelope(self, index: int) -> Envelope:
        return Envelope(self._chunk(self.encoder.delta(index, Envelope.TEXT)))

    def _start(self, index: int) -> Iterator[bytes]:
        choice = self.encoder.start(index)
        if choice is not None:
            yield event(self._chunk(choice))

    def _end(self, end: ChoiceEnd) -> Iterator[bytes]:
        """The last chunk of a choice. The report rides on that of the last choice, unless a usage chunk follows."""
        self._ends[end.index] = end
        choice = self.encoder.end(end.index, end.reason.value)
        if len(self._ends) < self.num_choices:
            yield event(self._chunk(choice))
        elif self.answer.include_usage:
            yield event(self._chunk(choice))
            yield event(self._chunk(usage=usage(self.answer, self._ends), glass=report(self._ends)))
            yield DONE
        else:
            yield event(self._chunk(choice, glass=report(self._ends)))
            yield DONE

    def _chunk(self, *choices: Json, **extra: Any) -> Json:
        answer = self.answer
        usage_field = {"usage": None} if answer.include_usage else {}
        head = {"id": answer.id, "object": self.object_name, "created": answer.created, "model": answer.model_name}
        return {**head, "choices": choices, **usage_field, **extra}


async def collect(batches: AsyncGenerator[Batch, None]) -> dict[int, ChoiceEnd]:
    """All choices by index, ascending, each with its whole text and all its tokens."""
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[ShownToken]] = {}
    ends: dict[int, ChoiceEnd] = {}
    async with aclosing(batches):
        async for item in (item async for batch in batches for item in batch):
            texts.setdefault(item.index, []).append(item.text)
            if item.tokens:
                tokens.setdefault(item.index, []).extend(item.tokens)
            if isinstance(item, ChoiceEnd):
                whole_text, shown = "".join(texts[item.index]), tuple(tokens.get(item.index, ()))
                ends[item.index] = replace(item, text=whole_text, tokens=shown)
    return dict(sorted(ends.items()))


def usage(answer: Answer, ends: Mapping[int, ChoiceEnd]) -> Json:
    """Token counts: a prompt counts once however many choices it has."""
    firsts = [end for index, end in ends.items() if index % answer.choices_per_prompt == 0]
    return usage_json(
        answer.num_prompt_tokens,
        sum(end.num_tokens for end in ends.values()),
        sum(end.finish.num_cached_tokens for end in firsts),
    )


def report(ends: Mapping[int, ChoiceEnd]) -> Json:
    """The `glass` object of all choices together."""
    return report_json([ends[index].finish.report for index in sorted(ends)])


def whole(answer: Answer, object_name: str, choices: list[Json], ends: Mapping[int, ChoiceEnd]) -> Json:
    """The JSON of an answer that is not streamed."""
    return {
        "id": answer.id,
        "object": object_name,
        "created": answer.created,
        "model": answer.model_name,
        "choices": choices,
        "usage": usage(answer, ends),
        "glass": report(ends),
    }


def _describe_logged(error: Exception) -> Json:
    described = describe(error)
    if described is INTERNAL_ERROR:
        logger.error("exception in a stream", exc_info=error)
    return described.envelope()
