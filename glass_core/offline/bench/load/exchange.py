"""One streamed HTTP request as cheaply as possible: while it runs, bytes are only stamped with the time they came at.

Parsing waits until the load is over, so that the generator takes next to no processor time from the server beside it.
A request has a connection of its own, which the server closes after the answer: its setup is part of the latency.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

MAX_ANSWER_BYTES = 64 << 20


@dataclass(slots=True)
class Exchange:
    """What one request brought. Times are of `time.perf_counter`; `due` is when it was to be sent.

    `error` is set when the connection failed or the answer never ended.
    """

    due: float
    sent: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


class _Recorder(asyncio.Protocol):
    """Sends the request once connected and stores what comes."""

    def __init__(self, request: bytes, exchange: Exchange, closed: asyncio.Future[None]) -> None:
        self._request, self._exchange, self._closed = request, exchange, closed
        self._room = MAX_ANSWER_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._exchange.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._exchange.pieces.append((time.perf_counter(), data))
        self._room -= len(data)
        if self._room < 0:
            self._exchange.error = f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self._exchange.error is None:
            self._exchange.error = f"connection lost: {exc}"
        if not self._closed.done():
            self._closed.set_result(None)


async def exchange(host: str, port: int, request: bytes, due: float) -> Exchange:
    """Send one request and wait until the server has closed the connection. Cancelling closes it at once."""
    loop = asyncio.get_running_loop()
    record, closed = Exchange(due), loop.create_future()
    try:
        transport, _ = await loop.create_connection(lambda: _Recorder(request, record, closed), host, port)
    except OSError as error:
        record.error = f"cannot connect: {error}"
        return record
    try:
        await closed
    except asyncio.CancelledError:
        record.error = "unfinished at the time limit"
        transport.abort()
    return record


def post(host: str, port: int, path: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON whose answer ends with the connection."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body
