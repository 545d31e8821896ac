"""Settings: everything an operator can choose, from flags, `GLASS_*` variables or defaults. Frozen, checked once.

GLASS_PORT=9000 GLASS_DEFAULT_SPARSITY=0.5 python -m server smollm2-135m
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from glass_core.api import DENSE_METHOD, MAX_SPARSITY
from glass_core.config import (
    AUTO,
    DEFAULT_MODEL,
    KV_CACHE_DTYPES,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
    resolve_model,
)
from glass_core.errors import ConfigurationError
from glass_core.expected_kl import DEFAULT_MAX_KL

ENV_PREFIX = "GLASS_"
AUTO_SPARSITY: Final = "auto"
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class Settings(BaseSettings):
    """One server. Build it with `load_settings`, which turns a wrong value into a ConfigurationError."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    model: str = Field(DEFAULT_MODEL, description="pulled model name, or path of a checkpoint folder")
    served_model_name: str | None = Field(None, description="name shown to clients; default: the model's own")
    chat_template: str | None = Field(
        None, description="Jinja file, or name of one of the checkpoint's templates, instead of the checkpoint's own"
    )
    artifact: Path | None = Field(
        None, description="global-statistics artifact; default: the one shipped for the model"
    )
    runner: str = Field(AUTO, description="compute runner: native or torch_runner; auto: native where it can serve")
    dtype: str = Field(
        AUTO, description="native: int4, int8 or bf16 (auto: the model's weight image); torch_runner: float32, bfloat16"
    )
    device: str = Field("cpu", description="cpu or cuda")
    num_threads: Positive | None = Field(None, description="compute threads; default: the runner's choice")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")

    default_sparsity: Annotated[float, Field(ge=0, le=MAX_SPARSITY)] | Literal["auto"] = Field(
        AUTO_SPARSITY,
        description="glass_sparsity of requests without one: a number, or auto: as much as default_max_kl allows, none "
        "where nothing was measured",
    )
    default_max_kl: float = Field(
        DEFAULT_MAX_KL,
        gt=0,
        allow_inf_nan=False,
        description="glass_max_kl of requests without one: expected KL from the dense model, nats per token",
    )
    default_lambda: float | None = Field(
        None, ge=0, le=1, description="lambda of requests without one, if they are not refined"
    )
    default_method: str = Field("a_glass", description="glass_method of requests without one")
    default_profile: str | None = Field(
        None, description="glass_profile of requests without one; default: sensitivity where measured, else uniform"
    )

    refine: bool | None = Field(
        None,
        description="glass_refine of requests without one; default: refine where the artifact has thresholds for the "
        "profile and sparsity, but not with a default_method or default_lambda of yours",
    )

    model_aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="other names clients may use for the model, comma-separated"
    )
    accept_any_model: bool = Field(False, description="answer whatever model name a client sends")

    max_model_len: Positive | None = Field(None, description="context length in tokens; default: the model's")
    max_num_sequences: Positive = Field(16, description="sequences that run at the same time")
    max_step_tokens: Positive = Field(512, description="tokens of one engine step, prefill and decode together")
    max_waiting: Positive = Field(128, description="sequences that may wait; more are answered with 429")
    block_size: Positive = Field(16, description="tokens of one KV cache block")
    kv_cache_bytes: Positive = Field(1 << 30, description="memory for the KV cache")
    kv_cache_dtype: str = Field(
        KV_CACHE_DTYPES[0], description="how the native runner stores keys and values: bf16, or int8 in half the memory"
    )
    view_cache_bytes: int = Field(3 << 30, ge=0, description="memory for the packed weights of sparse requests")
    enable_prefix_caching: bool = Field(True, description="reuse keys and values of prompts that begin alike")
    prefix_statistics_bytes: int = Field(
        256 << 20, ge=0, description="memory for the neuron statistics of cached prefixes, which sparse requests need"
    )

    max_body_bytes: Positive = Field(8 << 20, description="largest request body; larger ones are answered with 413")
    max_n: Positive = Field(16, description="largest n of a request")
    max_prompts: Positive = Field(64, description="prompts of one /v1/completions request")
    max_stop_strings: Positive = Field(16, description="stop strings of one request")
    max_stop_length: Positive = Field(256, description="characters of one stop string")

    keepalive_seconds: Seconds = Field(15.0, description="silence in a stream after which a comment is sent")
    drain_timeout_seconds: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = Field(
        30.0, description="time running requests get to finish after SIGTERM"
    )
    access_log: bool = Field(True, description="log every request as one JSON line")

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _split_aliases(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name for name in (part.strip() for part in value.split(",")) if name)
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        sparsity = self.default_sparsity
        if self.default_method == DENSE_METHOD and sparsity != AUTO_SPARSITY and sparsity > 0:
            raise ConfigurationError(
                f"default_method 'dense' contradicts default_sparsity {self.default_sparsity}: choose one"
            )
        if self.accept_any_model and self.model_aliases:
            raise ConfigurationError("model_aliases has no effect with accept_any_model: choose one")
        self.scheduler_config()
        self.cache_config()
        return self

    @property
    def has_static_defaults(self) -> bool:
        """Whether the operator chose how neurons are ranked statically."""
        return self.default_lambda is not None or "default_method" in self.model_fields_set

    @property
    def max_choices(self) -> int:
        """Choices (prompts times n) of one request: more than the queue holds would be answered with 429 forever."""
        return self.max_waiting

    @property
    def is_public(self) -> bool:
        """Whether machines other than this one may reach the server."""
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    def scheduler_config(self) -> SchedulerConfig:
        return SchedulerConfig(
            max_num_sequences=self.max_num_sequences,
            max_step_tokens=self.max_step_tokens,
            max_waiting=self.max_waiting,
        )

    def cache_config(self) -> CacheConfig:
        return CacheConfig(
            block_size=self.block_size,
            kv_cache_bytes=self.kv_cache_bytes,
            view_cache_bytes=self.view_cache_bytes,
            enable_prefix_caching=self.enable_prefix_caching,
            prefix_statistics_bytes=self.prefix_statistics_bytes,
            kv_cache_dtype=self.kv_cache_dtype,
        )

    def engine_config(self) -> EngineConfig:
        """The engine this server runs. Raises ModelNotFoundError when the model is neither pulled nor a folder."""
        model_path = resolve_model(self.model)
        return EngineConfig(
            model_path=model_path,
            model_name=self.served_model_name or model_path.resolve().name,
            runner=self.runner,
            dtype=self.dtype,
            device=self.device,
            num_threads=self.num_threads,
            max_model_len=self.max_model_len,
            artifact_path=self.artifact,
            scheduler=self.scheduler_config(),
            cache=self.cache_config(),
        )


def load_settings(**overrides: Any) -> Settings:
    """Settings from `overrides` (flags), then the environment, then defaults.

    Raises ConfigurationError naming every wrong setting, what came and what was expected.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    # after the setting's name comes the alternative of its type
    name = str(item["loc"][0]) if item["loc"] else "settings"
    return f"{name} ({ENV_PREFIX}{name.upper()}): {item['msg']}, got {item['input']!r}"
