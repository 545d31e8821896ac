"""Which runner serves when the configuration says `auto`: native where it can, else the torch runner, and a note why.

The dtype decides too: int4, int8 and bf16 are the native runner's, float32 and bfloat16 the torch runner's.
"""

from dataclasses import dataclass, replace

from glass_core.config import AUTO, EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.runners.native.availability import why_not
from glass_core.runners.native.checkpoint_image import chosen_format
from glass_core.runners.native.extension import kernel_notes
from glass_core.runners.native.image import FORMATS

NATIVE, TORCH = "native", "torch_runner"
PREFERENCE = (NATIVE, TORCH)
TORCH_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class RunnerChoice:
    """`config` with a runner's name and dtype instead of `auto`; `notes` say what was not possible."""

    config: EngineConfig
    notes: tuple[str, ...] = ()


def choose_runner(config: EngineConfig) -> RunnerChoice:
    """Resolve `auto` in runner and dtype. A configuration without it stays as it is.

    Raises ConfigurationError when no runner has the dtype or the one that has it cannot serve, ModelError when the
    model folder cannot be read.
    """
    if config.runner != AUTO:
        return RunnerChoice(_with_dtype(config), kernel_notes() if config.runner == NATIVE else ())
    if config.dtype in TORCH_DTYPES:
        return RunnerChoice(replace(config, runner=TORCH))
    if config.dtype != AUTO and config.dtype not in FORMATS:
        known = ", ".join((AUTO, *FORMATS, *TORCH_DTYPES))
        raise ConfigurationError(f"dtype must be one of {known}, got {config.dtype!r}")
    reason = why_not(config)
    if reason is None:
        return RunnerChoice(_with_dtype(replace(config, runner=NATIVE)), kernel_notes())
    if config.dtype in FORMATS:
        raise ConfigurationError(f"dtype {config.dtype!r} needs the native runner, which cannot serve here: {reason}")
    note = f"{TORCH} serves, the native runner cannot: {reason}"
    return RunnerChoice(_with_dtype(replace(config, runner=TORCH)), (note,))


def _with_dtype(config: EngineConfig) -> EngineConfig:
    if config.dtype != AUTO:
        return config
    if config.runner == NATIVE:
        return replace(config, dtype=chosen_format(config.model_path, AUTO))
    return replace(config, dtype=TORCH_DTYPES[0]) if config.runner == TORCH else config
