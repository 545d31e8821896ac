"""Reading the engine's streams of one HTTP request: a single one directly, several merged.

Both ways give what has come since the last read, so that an answer is sent once a step however many choices it has, and
both give an empty batch after a while of silence.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Protocol

from glass_core.api import TokenEvent
from glass_core.errors import EngineFailureError

TokenEvents = AsyncGenerator[TokenEvent, None]
Batch = Sequence[tuple[int, TokenEvent]]


class Reader(Protocol):
    """The streams of one request."""

    async def next(self) -> Batch:
        """Events by choice index, in order; empty after `idle_seconds` without any.

        Raises what a stream raises, EngineFailureError when one ends without a terminal event.
        """
        ...


async def open_reader(streams: Sequence[tuple[int, TokenEvents]], idle_seconds: float, stack: AsyncExitStack) -> Reader:
    """Read `streams`, numbered by choice. The stack stops the reading and leaves the streams open."""
    if len(streams) == 1:
        index, stream = streams[0]
        single = SingleReader(index, stream, idle_seconds)
        stack.callback(single.stop)
        return single
    merged = MergedReader(idle_seconds)
    stack.push_async_callback(merged.stop)
    for index, stream in streams:
        merged.add(index, stream)
    return merged


class SingleReader:
    """Reads one stream in the consumer's own task.

    A read that lasts too long is interrupted as asyncio.timeout does it, by cancelling and taking that back, but by one
    timer for the whole answer: two timers a token would cost as much as all the rest of its reading.
    """

    def __init__(self, index: int, stream: TokenEvents, idle_seconds: float) -> None:
        self._index = index
        self._stream = stream
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._task: asyncio.Task[object] | None = None
        self._rang = False
        self._timer = self._loop.call_later(idle_seconds, self._check)

    async def next(self) -> Batch:
        """See `Reader.next`."""
        self._since = self._loop.time()
        self._task = asyncio.current_task()
        try:
            return ((self._index, await anext(self._stream)),)
        except StopAsyncIteration:
            raise _ended_early() from None
        except asyncio.CancelledError:
            if not self._take_back():
                raise
            return ()
        finally:
            self._task = None

    def stop(self) -> None:
        """No alarm any more."""
        self._timer.cancel()

    def _check(self) -> None:
        """The timer's callback. While nobody reads, a slow client is being written to, and silence is its own."""
        now = self._loop.time()
        due = self._since + self._idle_seconds
        if self._task is None or now >= due:
            due = now + self._idle_seconds
            if self._task is not None:
                self._rang = True
                self._task.cancel()
        self._timer = self._loop.call_at(due, self._check)

    def _take_back(self) -> bool:
        """Whether the cancellation was ours alone."""
        rang, self._rang = self._rang, False
        return rang and self._task is not None and self._task.uncancel() == 0


class MergedReader:
    """Reads several streams, each in a task of its own."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._tasks: list[asyncio.Task[None]] = []
        self._batch: list[tuple[int, TokenEvent]] = []
        self._failure: Exception | None = None
        self._arrived = asyncio.Event()

    def add(self, index: int, stream: TokenEvents) -> None:
        self._tasks.append(asyncio.create_task(self._read(index, stream)))

    async def next(self) -> Batch:
        """See `Reader.next`. What came before a failure is given out before it is raised."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._idle_seconds):
                await self._arrived.wait()
        if self._failure is not None and not self._batch:
            raise self._failure
        batch, self._batch = self._batch, []
        if self._failure is None:
            self._arrived.clear()
        return batch

    async def stop(self) -> None:
        """Stop the tasks before their streams are closed: a generator that is being read cannot be closed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, index: int, stream: TokenEvents) -> None:
        """Move a stream's events into the batch; note its failure, for the consumer to raise."""
        finished = False
        try:
            async for event in stream:
                finished = finished or event.finish is not None
                self._batch.append((index, event))
                self._arrived.set()
            if not finished:
                raise _ended_early()
        except Exception as error:  # whatever it is, the consumer must not wait forever
            self._failure = error
            self._arrived.set()


def _ended_early() -> EngineFailureError:
    return EngineFailureError("the engine ended a stream without a terminal event")
