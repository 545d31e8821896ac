"""Readers: nothing is lost or swallowed, whether streams speak together, stay silent, fail or end early."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from glass_core.api import TokenEvent
from glass_core.engine.streams import Inbox, TokenStream
from glass_core.errors import EngineFailureError
from server.reading import Reader, SingleReader, open_reader

IDLE_SECONDS = 0.02
LONG = 60.0


def token(token_id: int) -> TokenEvent:
    return TokenEvent("r", 0.0, token_id)


@asynccontextmanager
async def reading(num_streams: int, idle_seconds: float) -> AsyncIterator[tuple[Reader, list[Inbox]]]:
    """A reader of engine streams, and the inboxes the engine would deliver to."""
    inboxes = [Inbox() for _ in range(num_streams)]
    streams = [(index, TokenStream(inbox, lambda: None)) for index, inbox in enumerate(inboxes)]
    async with AsyncExitStack() as stack:
        yield await open_reader(streams, idle_seconds, stack), inboxes
    for _, stream in streams:
        await stream.aclose()


@pytest.mark.parametrize("num_streams", [1, 3])
async def test_silence_is_an_empty_batch_and_loses_nothing(num_streams: int) -> None:
    async with reading(num_streams, IDLE_SECONDS) as (reader, inboxes):
        assert [list(await reader.next()) for _ in range(3)] == [[], [], []]
        inboxes[-1].put(token(5))
        assert list(await reader.next()) == [(num_streams - 1, token(5))]
        assert list(await reader.next()) == []


async def test_what_comes_together_is_one_batch() -> None:
    async with reading(3, LONG) as (reader, inboxes):
        for index, inbox in enumerate(inboxes):
            inbox.put(token(index))
        assert sorted(await reader.next(), key=lambda item: item[0]) == [(i, token(i)) for i in range(3)]


@pytest.mark.parametrize("num_streams", [1, 3])
async def test_a_cancelled_consumer_is_cancelled(num_streams: int) -> None:
    async with reading(num_streams, LONG) as (reader, inboxes):
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        inboxes[0].put(token(1))
        assert list(await reader.next()) == [(0, token(1))]


async def test_a_cancellation_from_outside_wins_over_the_alarm() -> None:
    async with reading(1, LONG) as (reader, _):
        assert isinstance(reader, SingleReader)
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        reader._since -= 2 * LONG
        reader._check()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_an_alarm_and_an_event_at_once_lose_neither() -> None:
    async with reading(1, LONG) as (reader, inboxes):
        assert isinstance(reader, SingleReader)
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        inboxes[0].put(token(1))
        reader._since -= 2 * LONG
        reader._check()
        assert list(await waiting) == []
        assert list(await reader.next()) == [(0, token(1))]


async def test_a_consumer_busy_elsewhere_is_not_interrupted() -> None:
    async with reading(1, IDLE_SECONDS) as (reader, inboxes):
        inboxes[0].put(token(1))
        await reader.next()
        await asyncio.sleep(3 * IDLE_SECONDS)
        inboxes[0].put(token(2))
        assert list(await reader.next()) == [(0, token(2))]


@pytest.mark.parametrize("num_streams", [1, 2])
async def test_a_failure_is_raised_after_what_came_before_it(num_streams: int) -> None:
    async with reading(num_streams, LONG) as (reader, inboxes):
        inboxes[0].put(token(1))
        inboxes[0].put(EngineFailureError("boom"))
        assert list(await reader.next()) == [(0, token(1))]
        with pytest.raises(EngineFailureError, match="boom"):
            await reader.next()


@pytest.mark.parametrize("num_streams", [1, 2])
async def test_a_stream_without_a_terminal_event_is_a_failure(num_streams: int) -> None:
    async with reading(num_streams, LONG) as (reader, inboxes):
        inboxes[0].put(None)
        with pytest.raises(EngineFailureError, match="terminal event"):
            await reader.next()


async def test_a_stream_has_one_reader() -> None:
    stream = TokenStream(Inbox(), lambda: None)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="being read"):
        await anext(stream)
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await first
