"""Frozen configuration of the engine, and where models live on disk. Built once at the edge; defaults written once."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from glass_core.errors import ConfigurationError, ModelNotFoundError

DEFAULT_MODEL = "smollm2-135m"
PREPARED_MANIFEST = "glass.json"
AUTO = "auto"
KV_CACHE_DTYPES = ("bf16", "int8")
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of continuous batching. `max_step_tokens` is one step's token budget (prefill chunks + decode rows)."""

    max_num_sequences: int = 16
    max_step_tokens: int = 512
    max_waiting: int = 128

    def __post_init__(self) -> None:
        for name in ("max_num_sequences", "max_step_tokens", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_step_tokens < self.max_num_sequences:
            raise ConfigurationError(
                f"max_step_tokens ({self.max_step_tokens}) must be at least max_num_sequences "
                f"({self.max_num_sequences}): every running sequence needs one token a step"
            )


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Memory budgets in bytes: the KV cache, and packed weight views of sparse requests (runners whose views copy).

    `kv_cache_dtype` is how the native runner stores keys and values: bf16, or int8 with scales for nearly twice the
    tokens; the torch runner stores its own dtype. `prefix_statistics_bytes` is the prefix cache's budget for the
    statistics that sparse requests need of a cached prefix; what is cached of keys and values lies in the KV cache.
    """

    block_size: int = 16
    kv_cache_bytes: int = 1 << 30
    view_cache_bytes: int = 3 << 30
    enable_prefix_caching: bool = True
    prefix_statistics_bytes: int = 256 << 20
    kv_cache_dtype: str = KV_CACHE_DTYPES[0]

    def __post_init__(self) -> None:
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            known = ", ".join(KV_CACHE_DTYPES)
            raise ConfigurationError(f"kv_cache_dtype must be one of {known}, got {self.kv_cache_dtype!r}")
        for name in ("block_size", "kv_cache_bytes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("view_cache_bytes", "prefix_statistics_bytes"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything needed to start an engine. `artifact_path` None means: the one shipped for this model, if any.

    `runner` auto is the native runner where it can serve, else the torch runner. `dtype` is what the runner computes
    with: int4, int8 or bf16 for native (auto: the weight image the model has), float32 or bfloat16 for torch_runner
    (auto: float32).
    """

    model_path: Path
    model_name: str
    runner: str = AUTO
    dtype: str = AUTO
    device: str = "cpu"
    num_threads: int | None = None
    max_model_len: int | None = None
    artifact_path: Path | None = None
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


def glass_home() -> Path:
    """`$GLASS_HOME`, else `glass` in the user's cache folder (XDG)."""
    explicit = os.environ.get("GLASS_HOME")
    if explicit:
        return Path(explicit).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "glass"


def models_directory() -> Path:
    """Where `glass pull` puts prepared checkpoints, one folder per name."""
    return glass_home() / "models"


def resolve_model(name_or_path: str) -> Path:
    """Folder of a pulled model name or of a local path.

    Raises ModelNotFoundError, naming what is pulled and how to pull.
    """
    if _MODEL_NAME.fullmatch(name_or_path):
        pulled = models_directory() / name_or_path
        if (pulled / PREPARED_MANIFEST).is_file():
            return pulled
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    available = sorted(p.parent.name for p in models_directory().glob(f"*/{PREPARED_MANIFEST}"))
    known = ", ".join(available) if available else "none yet"
    raise ModelNotFoundError(
        f"no model {name_or_path!r}: it is neither a pulled model (pulled: {known}) nor a folder; "
        f"run `glass pull {name_or_path}` first"
    )
