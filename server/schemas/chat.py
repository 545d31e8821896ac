"""`/v1/chat/completions`: request and response."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.common import (
    MAX_LOGPROBS,
    MAX_TOKENS,
    UNSUPPORTED,
    GenerationFields,
    IsNeutral,
    Text,
    Usage,
    empty,
    neutral,
)
from server.schemas.glass import GlassReport


def _only_text(value: Any) -> bool:
    return bool(value == ["text"])


CHAT_UNSUPPORTED: Mapping[str, IsNeutral] = {
    **UNSUPPORTED,
    "tools": empty,
    "tool_choice": neutral("none", "auto"),
    "functions": empty,
    "function_call": neutral("none", "auto"),
    "modalities": _only_text,
    "audio": empty,
    "prediction": empty,
    "web_search_options": empty,
    "reasoning_effort": neutral("none"),
}


class TextPart(BaseModel):
    """One text part of a message's content. Images, audio and files are refused."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One message of the conversation. Which roles may follow which is the model's chat template's business."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Annotated[Text, Field(min_length=1, max_length=64)] = Field(description="system, user or assistant")
    content: Text | Annotated[list[TextPart], Field(min_length=1)] = Field(
        description="text, or a list of text parts, which are joined by line breaks"
    )
    name: Text | None = Field(None, description="passed to the chat template")

    @model_validator(mode="before")
    @classmethod
    def _refuse_tool_calls(cls, message: Any) -> Any:
        if isinstance(message, dict) and (message.get("tool_calls") or message.get("function_call")):
            raise PydanticCustomError(
                "unsupported_parameter",
                "messages with tool calls are not supported by this server",
                {"param": "messages"},
            )
        return message

    def template_json(self) -> dict[str, str | None]:
        """The message as the chat template sees it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text, "name": self.name}


class ChatCompletionRequest(GenerationFields):
    """OpenAI's chat completion request with the GLASS fields."""

    unsupported: ClassVar[Mapping[str, IsNeutral]] = CHAT_UNSUPPORTED

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="longest answer, in tokens; default: the rest of the context"
    )

    logprobs: bool | None = Field(None, description="show the log-probability of every token of the answer")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="and of that many most probable tokens in its place; needs logprobs"
    )

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "field_conflict", "top_logprobs needs logprobs to be true", {"param": "top_logprobs"}
            )
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise PydanticCustomError(
                "field_conflict",
                "max_tokens ({max_tokens}) and max_completion_tokens ({limit}) contradict each other; send one of them",
                {"param": "max_completion_tokens", "max_tokens": both[0], "limit": both[1]},
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def longest_answer(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class TokenProbability(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class AnswerToken(TokenProbability):
    top_logprobs: list[TokenProbability]


class ChatLogprobs(BaseModel):
    """The model's own log-probabilities, before penalties, bias, temperature and filters."""

    content: list[AnswerToken]
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None


class ChatCompletion(BaseModel):
    """The answer to a chat completion request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    glass: GlassReport
