"""Find `prometheus` and `promtool` for the stack tests, or unpack them from Debian's package without being root.

`make test` runs this as a script before pytest, so that the tests themselves never download. The package is a static
Go binary, so unpacking the archive into the cache folder is all it takes. Where there is no apt-get the stack tests
skip; with CI set, this script and those tests fail instead: CI must not lose them silently.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glass_core.config import glass_home

PACKAGE = "prometheus"
DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Prometheus:
    """The two executables the stack tests need."""

    server: Path
    promtool: Path


class UnavailableError(Exception):
    """Prometheus is not installed and cannot be unpacked here; the message says why."""


def unpacked_folder() -> Path:
    return glass_home() / "tools" / PACKAGE


def find() -> Prometheus | None:
    """From PATH, else from the cache folder; None when in neither."""
    on_path = shutil.which("prometheus"), shutil.which("promtool")
    if all(on_path):
        return Prometheus(*(Path(str(path)) for path in on_path))
    binaries = unpacked_folder() / "usr" / "bin"
    found = Prometheus(binaries / "prometheus", binaries / "promtool")
    return found if found.server.is_file() and found.promtool.is_file() else None


def fetch() -> Prometheus:
    """`find`, else download and unpack Debian's package. Raises UnavailableError."""
    return find() or _unpack_package()


def _unpack_package() -> Prometheus:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"prometheus is not on PATH and there is no {tool} to fetch its package with")
    target = unpacked_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        archive = _download(Path(temporary))
        unpacked = Path(temporary) / "unpacked"
        _run(["dpkg-deb", "-x", str(archive), str(unpacked)], Path(temporary))
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    found = find()
    if found is None:
        raise UnavailableError(f"the {PACKAGE} package does not contain prometheus and promtool")
    return found


def _download(folder: Path) -> Path:
    """The package's .deb; where the system's package lists are missing or stale, with fresh private ones."""
    try:
        _run(["apt-get", "download", PACKAGE], folder)
    except UnavailableError:
        options = _private_apt(folder)
        _run(["apt-get", *options, "update"], folder)
        _run(["apt-get", *options, "download", PACKAGE], folder)
    return next(folder.glob(f"{PACKAGE}_*.deb"))


def _private_apt(folder: Path) -> list[str]:
    """Options that keep apt's lists and cache in `folder`, so that no root is needed."""
    lists, cache = folder / "lists", folder / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"`{' '.join(command[:2])}` failed: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"`{' '.join(command[:2])}` took longer than {DOWNLOAD_SECONDS} s") from error


def main() -> int:
    try:
        sys.stdout.write(f"prometheus: {fetch().server}\n")
    except UnavailableError as error:
        in_ci = bool(os.environ.get("CI"))
        consequence = "CI needs it" if in_ci else "the stack tests will be skipped"
        sys.stderr.write(f"prometheus: not available, {consequence} ({error})\n")
        return int(in_ci)
    return 0


if __name__ == "__main__":
    sys.exit(main())
