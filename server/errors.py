"""Every exception becomes an HTTP status and OpenAI's error envelope in one table, here.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

Messages of our own errors are written for clients; anything else is replaced by a sentence without internals.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from glass_core.errors import (
    ContextLengthError,
    EngineFailureError,
    EngineUnavailableError,
    GlassError,
    InvalidRequestError,
    MissingStatisticsError,
    ModelNotFoundError,
    QueueFullError,
)

UNSUPPORTED = "unsupported_parameter"
UNAVAILABLE_RETRY_SECONDS = 5
INTERNAL_MESSAGE = "The server failed to answer this request. Its log has the details under this request id."
MAX_MESSAGE_LENGTH = 1000
# a path of two or more segments, our own URLs excepted, or a memory address
_INTERNALS = re.compile(r"(?<![\w/])(?!/v1/)(?:/[\w.+-]+){2,}/?|\b0x[0-9a-fA-F]{6,}\b")


@dataclass(frozen=True, slots=True)
class ApiError:
    """One error as a client sees it."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None

    def envelope(self) -> dict[str, Any]:
        message = scrub(self.message)
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return {}
        return {"retry-after": str(max(1, self.retry_after_seconds))}


# exception, most specific first -> (status, type, code)
TABLE: tuple[tuple[type[GlassError], tuple[int, str, str]], ...] = (
    (ContextLengthError, (400, "invalid_request_error", "context_length_exceeded")),
    (InvalidRequestError, (400, "invalid_request_error", "invalid_request_error")),
    (MissingStatisticsError, (400, "invalid_request_error", "missing_statistics")),
    (ModelNotFoundError, (404, "invalid_request_error", "model_not_found")),
    (QueueFullError, (429, "rate_limit_error", "rate_limit_exceeded")),
    (EngineUnavailableError, (503, "server_error", "service_unavailable")),
    (EngineFailureError, (500, "server_error", "server_error")),
)

# status the framework raises -> code
HTTP_CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}

INTERNAL_ERROR = ApiError(500, "server_error", "server_error", INTERNAL_MESSAGE)


def scrub(message: str) -> str:
    """The message without file paths and addresses, on one line, of bounded length."""
    return _INTERNALS.sub("…", " ".join(message.split()))[:MAX_MESSAGE_LENGTH]


def describe(error: Exception) -> ApiError:
    """The client's view of any exception."""
    for kind, (status, error_type, code) in TABLE:
        if isinstance(error, kind):
            message = INTERNAL_MESSAGE if status == 500 else str(error)
            return ApiError(status, error_type, code, message, _param(error), _retry_after(error))
    if isinstance(error, RequestValidationError):
        return _describe_validation(error.errors())
    if isinstance(error, HTTPException):
        error_type = "server_error" if error.status_code >= 500 else "invalid_request_error"
        code = HTTP_CODES.get(error.status_code, error_type)
        return ApiError(error.status_code, error_type, code, str(error.detail))
    return INTERNAL_ERROR


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer for an error. The body is ASCII JSON, so that text a client sent cannot break its encoding."""
    body = json.dumps(error.envelope())
    return Response(body, error.status, {**(headers or {}), **error.headers()}, media_type="application/json")


def install(app: FastAPI) -> None:
    """Answer every exception a route can raise with the envelope."""
    for kind in (*(kind for kind, _ in TABLE), RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)


async def _handle(request: Request, error: Exception) -> Response:
    return error_response(describe(error), getattr(error, "headers", None))


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx's number for "client closed request" in the logs


def _param(error: GlassError) -> str | None:
    if isinstance(error, ModelNotFoundError):
        return "model"
    return error.param if isinstance(error, InvalidRequestError | MissingStatisticsError) else None


def _retry_after(error: Exception) -> int | None:
    if isinstance(error, QueueFullError):
        return error.retry_after_seconds
    return UNAVAILABLE_RETRY_SECONDS if isinstance(error, EngineUnavailableError) else None


def _describe_validation(items: Sequence[Any]) -> ApiError:
    """The first wrong field of a body; where it could be one of several types, the try that came furthest."""
    item = max((item for item in items if item["loc"][:2] == items[0]["loc"][:2]), key=lambda item: len(item["loc"]))
    param = item.get("ctx", {}).get("param")
    if param is not None:  # one of our own checks, which spans fields and names the culprit itself
        code = UNSUPPORTED if item["type"] == UNSUPPORTED else "invalid_request_error"
        return ApiError(400, "invalid_request_error", code, item["msg"], param)
    param = field_path(item["loc"])
    message = _validation_message(item, param)
    return ApiError(400, "invalid_request_error", "invalid_request_error", message, param)


def _validation_message(item: Any, param: str | None) -> str:
    if item["type"] == "json_invalid":
        return f"The body is not valid JSON: {item.get('ctx', {}).get('error', item['msg'])}"
    if param is None:
        return "The body must be a JSON object, sent with Content-Type: application/json"
    if item["type"] == "missing":
        return f"{param}: this field is required"
    return f"{param}: {item['msg']}, got {_show(item.get('input'))}"


def field_path(location: Sequence[Any]) -> str | None:
    """`("body", "messages", 0, "content", "str")` → `messages[0].content`; None for the body itself."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _BRANCH.fullmatch(part):
            path += f".{part}" if path else part
    return path or None


# pydantic puts the union branch it tried into the location
_BRANCH = re.compile(r"str|constrained-str|constrained-float|literal\[.*\]|list\[.*\]|function-.*")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
