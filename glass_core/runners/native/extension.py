"""The compiled module `_native`: importing it, and saying why it cannot be."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from glass_core.errors import ConfigurationError

if TYPE_CHECKING:
    from glass_core.runners.native.types import NativeModule

_NAME = "glass_core.runners.native._native"


def load_extension() -> "NativeModule":
    """The module. Raises ConfigurationError that says why it is missing and what to do."""
    try:
        return cast("NativeModule", importlib.import_module(_NAME))
    except ImportError as error:
        raise ConfigurationError(
            f"the native runner's extension module cannot be imported ({error}); install a C++20 compiler and install "
            "this package again, or use the runner torch_runner"
        ) from error


def build_identity() -> str:
    """Tells one build of the module from another. Raises ConfigurationError when it is missing."""
    status = Path(load_extension().__file__).stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def why_missing() -> str | None:
    """Why the native runner cannot be used here; None when it can."""
    try:
        load_extension()
    except ConfigurationError as error:
        return str(error)
    return None
