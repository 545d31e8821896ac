"""TokenStream: the consumer's end of one request, and the inbox the deliveries go to."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType

from glass_core.api import TokenEvent
from glass_core.errors import GlassError

Inbox = asyncio.Queue[TokenEvent | GlassError | None]
"""None marks a stream closed while somebody was reading it."""


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

    async def asend(self, value: None) -> TokenEvent:
        """The next event. Raises the request's EngineFailureError, StopAsyncIteration after the end."""
        if self._done:
            raise StopAsyncIteration
        item = await self._inbox.get()
        if isinstance(item, TokenEvent):
            self._done = item.finish is not None
            return item
        self._done = True
        if item is None:
            raise StopAsyncIteration
        raise item

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
            self._inbox.put_nowait(None)
            self._on_close()

    def __del__(self) -> None:
        # Any thread can collect garbage; a closed loop's streams are aborted by the client itself.
        if not self._done:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_close)
