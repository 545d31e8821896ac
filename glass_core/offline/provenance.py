"""Under which conditions something was measured: the machine, the versions, the command. Goes into every result."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from glass_core import __version__
from glass_core.runners.native.processor import cpu_model, num_cores

_MEASURING_PACKAGES = ("torch", "numpy")


def surroundings(command: str) -> dict[str, Any]:
    """Everything here that a result says, whatever was measured."""
    return {
        "command": command,
        "host": platform.node(),
        "commit": commit(),
        "machine": machine(),
        "load_average": load_average(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the software that measures."""
    found = {"glass": __version__, "python": platform.python_version()}
    for name in _MEASURING_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def machine() -> dict[str, str | int]:
    """Processor, its cores available to this process, memory, and the operating system."""
    return {
        "cpu": cpu_model(),
        "num_cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute: above 0, others share the machine."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def commit() -> str | None:
    """The git commit this code runs from, with `-dirty` when files differ from it; None outside of a checkout."""
    root, git = Path(__file__).resolve().parents[2], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    describe = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(describe, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or None


def memory_bytes() -> int:
    """Physical memory; 0 when the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
