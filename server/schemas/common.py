"""What chat and text completions share: sampling fields, usage, and the refusal of fields we know but do not serve.

Types are strict: `true` is not a number and `"5"` is not one either. Unknown fields are ignored, because clients send
vendor fields; a known field that would change the answer and is not supported is an error, never silence.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.glass import GlassFields

MAX_SEED = 2**63
MAX_TOKENS = 2**31

Finite = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[Finite, Field(ge=-2, le=2)]


def _check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "Input should be valid Unicode, without lone surrogates") from None
    return text


# JSON can spell half of a surrogate pair; no tokenizer accepts it
Text = Annotated[str, AfterValidator(_check_unicode)]
CacheSalt = Annotated[Text, Field(min_length=1, max_length=512)]
StopString = Annotated[Text, Field(min_length=1)]
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
# a token id as JSON spells the key of an object, in the one way that keeps keys distinct
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
LogitBias = Annotated[dict[TokenKey, Annotated[Finite, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)]
IsNeutral = Callable[[Any], bool]


def empty(value: Any) -> bool:
    """A value that changes nothing is false, 0 or has nothing in it."""
    return not value


def neutral(*values: Any) -> IsNeutral:
    """A value that changes nothing is one of these (null always is). Types count: `false` is not 0."""
    return lambda value: any(type(value) is type(item) and value == item for item in values)


# fields of the OpenAI and vLLM APIs that would change the answer -> the test of a value that would not
UNSUPPORTED: Mapping[str, IsNeutral] = {
    "response_format": neutral({"type": "text"}),
    "chat_template": empty,
    "chat_template_kwargs": empty,
    "continue_final_message": neutral(False),
    "add_generation_prompt": neutral(True),
}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = Field(None, description="send one last chunk with the token counts")
    continuous_usage_stats: bool | None = Field(None, description="not supported yet")


def _refuse_continuous_usage(options: StreamOptions) -> StreamOptions:
    if options.continuous_usage_stats:
        refuse_unsupported("stream_options.continuous_usage_stats")
    return options


def refuse_unsupported(param: str) -> None:
    """Raise the error of a known field that is not supported."""
    raise PydanticCustomError("unsupported_parameter", "{param} is not supported by this server", {"param": param})


class GenerationFields(GlassFields):
    """Request fields of every endpoint that generates text."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=False)
    unsupported: ClassVar[Mapping[str, IsNeutral]] = UNSUPPORTED

    model: str | None = Field(None, description="the served model's name; may be left out", max_length=512)
    stream: bool | None = Field(None, description="answer with server-sent events")
    stream_options: Annotated[StreamOptions, AfterValidator(_refuse_continuous_usage)] | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="choices per prompt")
    stop: StopString | list[StopString] | None = Field(None, description="the answer ends before any of these")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(None, description="longest answer, in tokens")
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy; default 1")
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = Field(None, description="0 or -1 is off")
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, lt=MAX_SEED)] | None = Field(
        None, description="same seed, same answer, whatever else the server does"
    )
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = Field(None, description="1 is off")
    logit_bias: LogitBias | None = Field(
        None, description="token id to a number from -100 to 100 that is added to its logit"
    )
    ignore_eos: bool | None = Field(None, description="generate max_tokens tokens whatever the model says (load tests)")
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="shortest answer, in tokens"
    )
    cache_salt: CacheSalt | None = Field(
        None,
        description="only requests with the same salt share cached prompts, so that response times tell nobody else "
        "what was asked; best a long random string per user",
    )
    user: str | None = Field(None, description="accepted and ignored")
    metadata: dict[str, Any] | None = Field(None, description="accepted and ignored")
    store: bool | None = Field(None, description="accepted and ignored: nothing is stored")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name, is_neutral in cls.unsupported.items():
                if body.get(name) is not None and not is_neutral(body[name]):
                    refuse_unsupported(name)
        return body

    @model_validator(mode="after")
    def _check_min_tokens(self) -> Self:
        limit = self.longest_answer
        if self.min_tokens is not None and limit is not None and self.min_tokens > limit:
            raise PydanticCustomError(
                "field_conflict",
                "min_tokens ({min_tokens}) must not be larger than the longest answer ({limit})",
                {"param": "min_tokens", "min_tokens": self.min_tokens, "limit": limit},
            )
        return self

    @property
    def longest_answer(self) -> int | None:
        """The limit the client set, in tokens."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many most probable tokens are wanted beside each token's own log-probability; None = no such thing."""
        return None

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="prompt tokens whose keys and values were already there")


class Usage(BaseModel):
    """Token counts. A stop token counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_json(num_prompt: int, num_completion: int, num_cached: int) -> dict[str, Any]:
    """The `usage` object of an answer."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }
