"""Generation events to HTTP answers: collected into one JSON object, or framed as server-sent events."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from server.errors import INTERNAL_ERROR, describe
from server.generation import ChoiceEnd, Delta, GenerationEvent, Idle
from server.routes.build import Answer
from server.schemas.common import usage_json
from server.schemas.glass import report_json
from server.sse import DONE, PING, event

logger = logging.getLogger("glass.server")

Json = dict[str, Any]


class ChunkEncoder(Protocol):
    """The part of a stream that differs between endpoints."""

    def start(self, index: int) -> Json | None:
        """The first chunk's choice, if the endpoint has one without generated text."""

    def delta(self, index: int, text: str) -> Json:
        """The choice of a chunk with new text."""
        ...

    def end(self, index: int, reason: str) -> Json:
        """The choice of the last chunk."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkStream:
    """Frames of one streamed answer: `object_name` and encoder are the endpoint's."""

    answer: Answer
    object_name: str
    encoder: ChunkEncoder
    num_choices: int

    async def frames(self, events: AsyncGenerator[GenerationEvent, None]) -> AsyncGenerator[bytes, None]:
        """An error before the first frame is raised, a later one becomes a frame; `[DONE]` comes last in any case."""
        begun = False
        async with aclosing(self._chunks(events)) as chunks:
            try:
                async for frame in chunks:
                    begun = True
                    yield frame
            except Exception as error:
                if not begun:
                    raise
                yield event(_describe_logged(error))
        yield DONE

    async def _chunks(self, events: AsyncGenerator[GenerationEvent, None]) -> AsyncGenerator[bytes, None]:
        started: set[int] = set()
        ends: dict[int, ChoiceEnd] = {}
        async with aclosing(events):
            async for item in events:
                if isinstance(item, Idle):
                    yield PING
                    continue
                for choice in self._texts(item, started):
                    yield self._frame(choice)
                if isinstance(item, ChoiceEnd):
                    ends[item.index] = item
                    yield self._frame(self.encoder.end(item.index, item.reason.value), **self._report(ends))
        if self.answer.include_usage:
            yield self._frame(usage=usage(self.answer, ends), glass=report(ends))

    def _texts(self, item: Delta | ChoiceEnd, started: set[int]) -> list[Json]:
        """Choices of the chunks this event adds before its end: the opening one, and new text."""
        choices: list[Json | None] = []
        if item.index not in started:
            started.add(item.index)
            choices.append(self.encoder.start(item.index))
        if item.text:
            choices.append(self.encoder.delta(item.index, item.text))
        return [choice for choice in choices if choice is not None]

    def _report(self, ends: Mapping[int, ChoiceEnd]) -> Json:
        """The report rides on the last choice's last chunk, unless a usage chunk follows."""
        is_last = len(ends) == self.num_choices and not self.answer.include_usage
        return {"glass": report(ends)} if is_last else {}

    def _frame(self, *choices: Json, **extra: Any) -> bytes:
        answer = self.answer
        usage_field = {"usage": None} if answer.include_usage else {}
        head = {"id": answer.id, "object": self.object_name, "created": answer.created, "model": answer.model_name}
        return event({**head, "choices": choices, **usage_field, **extra})


async def collect(events: AsyncGenerator[GenerationEvent, None]) -> dict[int, ChoiceEnd]:
    """All choices by index, ascending, each with its whole text."""
    texts: dict[int, list[str]] = {}
    ends: dict[int, ChoiceEnd] = {}
    async with aclosing(events):
        async for item in events:
            if isinstance(item, Idle):
                continue
            texts.setdefault(item.index, []).append(item.text)
            if isinstance(item, ChoiceEnd):
                ends[item.index] = replace(item, text="".join(texts[item.index]))
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
