"""TokenStream: the consumer's end of one request, and the inbox the deliveries go to."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType

from glass_core.api import TokenEvent
from glass_core.errors import GlassError

Item = TokenEvent | GlassError | None
"""None marks a stream closed while somebody was reading it."""


class Inbox:
    """Items for one reader of this event loop, in order.

    What is left of asyncio.Queue when nothing limits the size and only one reads: a token passes in half the time.
    """

    __slots__ = ("_loop", "_waiter", "items")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Add an item and wake the reader. Event loop's thread only."""
        self.items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for an item; a wait that is cancelled loses none. Raises RuntimeError for a second reader."""
        if self._waiter is not None:
            raise RuntimeError("this stream is being read already")
        while not self.items:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class TokenStream(AsyncGenerator[TokenEvent, None]):
    """Yields a request's events until the terminal one. `on_close` is called when it is closed, or dropped, before.

    A class and not a generator function for two reasons: closing it before the first read must abort too (a generator
    that never started runs no `finally`), and a read that is cancelled, by a timeout say, must leave it usable.
    """

    def __init__(self, inbox: Inbox, on_close: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox = inbox
        self._on_close = on_close
        self._done = False

    async def __anext__(self) -> TokenEvent:
        """The next event. Raises the request's EngineFailureError, StopAsyncIteration after the end."""
        if self._done:
            raise StopAsyncIteration
        inbox = self._inbox
        if not inbox.items:
            await inbox.wait()
        item = inbox.items.popleft()
        if isinstance(item, TokenEvent):
            self._done = item.finish is not None
            return item
        self._done = True
        if item is None:
            raise StopAsyncIteration
        raise item

    async def asend(self, value: None) -> TokenEvent:
        """See `__anext__`."""
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> TokenEvent:
        """Close, then raise what was thrown in."""
        self._close()
        return await super().athrow(typ, val, tb)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Abort the request unless it has ended."""
        self._close()

    def _close(self) -> None:
        if not self._done:
            self._done = True
            self._inbox.put(None)
            self._on_close()

    def __del__(self) -> None:
        # Any thread can collect garbage; a closed loop's streams are aborted by the client itself.
        if not self._done:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_close)
