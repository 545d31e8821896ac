"""What the API description says about errors, the same for every generating endpoint."""

from typing import Any

from server.schemas.error import ErrorResponse

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "the request is wrong; `param` names the field"},
    404: {"model": ErrorResponse, "description": "another model's name"},
    413: {"model": ErrorResponse, "description": "the body is too large"},
    429: {"model": ErrorResponse, "description": "the queue is full; see Retry-After"},
    500: {"model": ErrorResponse, "description": "the engine failed"},
    503: {"model": ErrorResponse, "description": "loading or shutting down; see Retry-After"},
}
