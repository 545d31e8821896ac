"""Whether the native runner can serve a configuration, and if not why, without loading anything heavy."""

import importlib

from glass_core.checkpoint.json_file import read_json_object
from glass_core.config import EngineConfig
from glass_core.models.registry import load_spec
from glass_core.runners.native.checkpoint_image import chosen_format, why_not_makeable

EXTENSION = "glass_core.runners.native._native"


def why_no_extension() -> str | None:
    """Why the compiled module cannot be imported. None when it can."""
    try:
        importlib.import_module(EXTENSION)
    except ImportError as error:
        return f"its extension is not installed ({error}): building it needs a C++20 compiler at install time"
    return None


def why_not(config: EngineConfig) -> str | None:
    """Why native cannot serve this configuration. None when it can.

    Raises ConfigurationError for a dtype that is not a format, and ModelError for a folder that cannot be read.
    """
    if config.device != "cpu":
        return f"it computes on the CPU only, not on {config.device!r}"
    if (problem := why_no_extension()) is not None:
        return problem
    spec = load_spec(read_json_object(config.model_path / "config.json"))
    if spec.rope.kind == "dynamic":
        return "it does not implement dynamic RoPE scaling"
    return why_not_makeable(config.model_path, chosen_format(config.model_path, config.dtype))
