"""Compute runners, one sub-package each; the folder name is the public name."""

import importlib
import pkgutil
from typing import cast

from glass_core.config import EngineConfig
from glass_core.errors import ConfigurationError
from glass_core.runners.base import Runner, RunnerModule


def available_runners() -> tuple[str, ...]:
    """Names of the runner packages present: the allow-list for `load_runner`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def load_runner(config: EngineConfig) -> Runner:
    """Import the configured runner and load the model with it.

    Raises ConfigurationError for an unknown runner or one whose libraries are not installed, ModelError when the
    model cannot be loaded.
    """
    if config.runner not in available_runners():
        raise ConfigurationError(f"no runner {config.runner!r}; available: {', '.join(available_runners())}")
    try:
        module = importlib.import_module(f"{__name__}.{config.runner}")
    except ImportError as error:
        raise ConfigurationError(
            f"runner {config.runner!r} cannot be imported ({error}); install its extra, "
            f"for example `pip install glass-serve[torch]`"
        ) from error
    return cast(RunnerModule, module).load(config)
