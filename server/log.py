"""Structured logs: one JSON object a line, a request id in each, and an access line for every request.

The middleware here is the outermost one: it names the request, times it, and answers an unforeseen exception with the
error envelope, so that even that answer carries `x-request-id`. Nothing a client sent but method and path is logged.
"""

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

request_id_variable: ContextVar[str | None] = ContextVar("request_id", default=None)
access_logger = logging.getLogger("glass.access")
logger = logging.getLogger("glass.server")


class JsonFormatter(logging.Formatter):
    """A log record as one JSON line. `extra={"fields": {...}}` adds keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = request_id_variable.get()
        if request_id is not None:
            entry["request_id"] = request_id
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(*, level: int = logging.INFO) -> None:
    """Send all logs to stderr as JSON lines. Called once, by the composition root."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def choose_request_id(sent: str | None) -> str:
    """The client's id when it is harmless (≤ 128 characters of `[A-Za-z0-9._-]`), else a new one."""
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent
    return f"req_{uuid.uuid4().hex}"


class RequestContextMiddleware:
    """Request id, access log, and the answer to exceptions nobody foresaw."""

    def __init__(self, app: ASGIApp, *, internal_error: Callable[[], Response], access_log: bool) -> None:
        self._app = app
        self._internal_error = internal_error
        self._access_level = logging.INFO if access_log else logging.DEBUG

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        token = request_id_variable.set(request_id)
        response = _ResponseWatch(send, request_id)
        started = time.monotonic()
        try:
            await self._answer(scope, receive, response)
        finally:
            _log_access(scope, response.status, time.monotonic() - started, self._access_level)
            request_id_variable.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, response: "_ResponseWatch") -> None:
        try:
            await self._app(scope, receive, response)
        except Exception:
            logger.exception("unhandled exception")
            if response.status is not None:
                raise  # the answer has begun: only closing the connection tells the client
            await self._internal_error()(scope, receive, response)


class _ResponseWatch:
    """A `send` that remembers the status and adds the request id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self._request_id
        await self._send(message)


def _log_access(scope: Scope, status: int | None, seconds: float, level: int) -> None:
    fields = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,  # null: the client left before an answer began
        "duration_seconds": round(seconds, 6),
    }
    access_logger.log(level, "request", extra={"fields": fields})
