"""The error envelope, for the API description. The answers themselves are made in `server/errors.py`."""

from pydantic import BaseModel, Field


class ErrorBody(BaseModel):
    """What went wrong. All four keys are always there."""

    message: str = Field(description="a sentence for a person")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error")
    param: str | None = Field(description="path of the offending field, such as `messages[0].content`")
    code: str | None = Field(description="a stable word for a program, such as `context_length_exceeded`")


class ErrorResponse(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorBody
