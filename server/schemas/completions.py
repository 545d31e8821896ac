"""`/v1/completions`: request and response."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from server.schemas.common import (
    MAX_LOGPROBS,
    UNSUPPORTED,
    GenerationFields,
    IsNeutral,
    Text,
    Usage,
    empty,
    neutral,
    refuse_unsupported,
)
from server.schemas.glass import GlassReport

# OpenAI's documented default of this endpoint
DEFAULT_MAX_TOKENS = 16

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = str | list[int]


COMPLETION_UNSUPPORTED: Mapping[str, IsNeutral] = {
    **UNSUPPORTED,
    "suffix": empty,
    "best_of": neutral(1),
}


class CompletionRequest(GenerationFields):
    """OpenAI's text completion request with the GLASS fields."""

    unsupported: ClassVar[Mapping[str, IsNeutral]] = COMPLETION_UNSUPPORTED

    prompt: (
        Text | Annotated[list[Text], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    )
    echo: bool | None = Field(None, description="begin each choice's text with its prompt")
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="show the log-probability of every token, and of that many most probable ones in its place"
    )
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = Field(
        None, description=f"longest completion, in tokens; default {DEFAULT_MAX_TOKENS}"
    )

    @model_validator(mode="after")
    def _no_logprobs_of_the_prompt(self) -> Self:
        if self.echo and self.logprobs is not None:
            refuse_unsupported("echo together with logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def longest_answer(self) -> int | None:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[Prompt]:
        """One entry per prompt, text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [[item for item in prompt if isinstance(item, int)]]
        return [item for item in prompt if not isinstance(item, int)]


class CompletionLogprobs(BaseModel):
    """The model's own log-probabilities, before penalties, bias, temperature and filters; one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None


class Completion(BaseModel):
    """The answer to a text completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    glass: GlassReport
