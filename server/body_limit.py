"""Refuses a request body over the limit before reading all of it."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Looks at Content-Length first, then counts, because a chunked body declares no length."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        received = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0

        async def limited() -> Message:
            nonlocal received
            if received > self._max_bytes:
                raise self._too_large()
            message = await receive()
            if not declared:
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        # the rest of the body is never read, so the connection cannot be used again
        detail = f"The request body is larger than the limit of {self._max_bytes} bytes"
        return HTTPException(413, detail, headers={"connection": "close"})
