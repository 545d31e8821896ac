"""The compiled module `_native`: importing it, saying why it cannot be, and which instruction set its kernels use."""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from glass_core.errors import ConfigurationError

if TYPE_CHECKING:
    from glass_core.runners.native.types import NativeModule

ISA_VARIABLE = "GLASS_CPU_ISA"
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


def requested_isa() -> str:
    """The instruction set $GLASS_CPU_ISA names; empty = the best one."""
    return os.environ.get(ISA_VARIABLE, "")


def kernel_notes() -> tuple[str, ...]:
    """A note per instruction set that this machine has but whose kernels compute wrong results here.

    None when $GLASS_CPU_ISA names one: then no other kernels are run, not even to check them.
    """
    if requested_isa() or why_missing() is not None:
        return ()
    passed_over = load_extension().kernels.passed_over_isas()
    return tuple(
        f"instruction set {name} is not used: {problem}" for name, problem, defective in passed_over if defective
    )
