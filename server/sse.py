"""Server-sent events: framing, and a response that notices when its reader leaves.

Encoding is strict: NaN and infinities raise instead of reaching a client.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx buffers answers unless told otherwise
    "x-accel-buffering": "no",
}


# made once: json.dumps with options of its own builds an encoder at every call
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_json(value: Mapping[str, Any] | str) -> bytes:
    """Compact JSON. Raises ValueError for NaN and infinities; lone surrogates become question marks."""
    return _encoder.encode(value).encode("utf-8", "replace")


def event(value: Mapping[str, Any]) -> bytes:
    """One `data:` event."""
    return b"data: " + encode_json(value) + b"\n\n"


class Envelope:
    """A `data:` event encoded in advance, but for one string: all that differs from token to token.

    Made from an event with `Envelope.TEXT` in that string's place, the last such string of the event.
    """

    TEXT = "\0text"

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._head, _, self._tail = event(value).rpartition(encode_json(self.TEXT))

    def fill(self, text: str) -> bytes:
        """The event with `text`."""
        return self._head + encode_json(text) + self._tail


class StrictJsonResponse(Response):
    """A JSON answer encoded by `encode_json`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode_json(content)


class EventStreamResponse(Response):
    """Sends frames as they come.

    The first frame is awaited before the status line, so an error raised before it is still a plain HTTP error. When
    the client disconnects, at any time, the frames' generator is closed at once: its `finally` aborts the work.
    """

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send_frames(send))
        except (ClientDisconnect, OSError):
            return

    async def _send_frames(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            first = await anext(frames)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it and raise ClientDisconnect when the client leaves first. The body must have been read."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
