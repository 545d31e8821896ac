"""Whether the native runner can serve a configuration, and if not why, without loading anything heavy."""

from glass_core.config import EngineConfig
from glass_core.runners.native.checkpoint_image import chosen_format, why_not_makeable
from glass_core.runners.native.extension import why_missing


def why_not(config: EngineConfig) -> str | None:
    """Why native cannot serve this configuration. None when it can.

    Raises ConfigurationError for a dtype that is not a format, and ModelError for a folder that cannot be read.
    """
    if config.device != "cpu":
        return f"it computes on the CPU only, not on {config.device!r}"
    return why_missing() or why_not_makeable(config.model_path, chosen_format(config.model_path, config.dtype))
