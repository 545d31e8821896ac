"""`/v1/completions`: request and response."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from server.schemas.common import UNSUPPORTED, GenerationFields, IsNeutral, Text, Usage, neutral
from server.schemas.glass import GlassReport

# OpenAI's documented default of this endpoint
DEFAULT_MAX_TOKENS = 16

TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = str | list[int]


def _falsy(value: Any) -> bool:
    return not value


COMPLETION_UNSUPPORTED: Mapping[str, IsNeutral] = {
    **UNSUPPORTED,
    "logprobs": lambda value: False,  # even 0 asks for the chosen tokens' values
    "suffix": _falsy,
    "best_of": neutral(1),
}


class CompletionRequest(GenerationFields):
    """OpenAI's text completion request with the GLASS fields."""

    unsupported: ClassVar[Mapping[str, IsNeutral]] = COMPLETION_UNSUPPORTED

    prompt: (
        Text | Annotated[list[Text], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    )
    echo: bool | None = Field(None, description="begin each choice's text with its prompt")
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = Field(
        None, description=f"longest completion, in tokens; default {DEFAULT_MAX_TOKENS}"
    )

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


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None


class Completion(BaseModel):
    """The answer to a text completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    glass: GlassReport
