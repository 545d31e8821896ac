"""Where pulled models go: one lock per name, a working folder on the same disk, and an atomic last rename."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glass_core.checkpoint.manifest import PreparedManifest, read_manifest
from glass_core.config import PREPARED_MANIFEST, glass_home, models_directory
from glass_core.errors import CheckpointError, ConfigurationError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def check_name(name: str) -> str:
    """The name itself. Raises ConfigurationError when it cannot be a model's name."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"--name {name!r}: expected lower-case letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    return name


def name_for_path(path: Path) -> str:
    """A valid name made of the file's stem or the folder's name."""
    stem = path.stem if path.is_file() else path.name
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
    return name or "model"


def pulled_manifest(name: str) -> PreparedManifest | None:
    """The manifest of an intact pulled model; None when there is none or it is damaged."""
    folder = models_directory() / name
    if not (folder / PREPARED_MANIFEST).is_file():
        return None
    try:
        return read_manifest(folder)
    except CheckpointError:
        return None


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the name's lock; a second pull of the same name waits for the first."""
    folder = _partial_folder()
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another `glass pull` is preparing {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def working_folder(name: str) -> Iterator[Path]:
    """An empty folder beside the models, removed at the end. Call with the name's lock held: what a killed pull of
    this name left behind is removed too."""
    for leftover in _partial_folder().glob(f"{name}@*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = _partial_folder() / f"{name}@{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(prepared: Path, name: str) -> Path:
    """Rename a finished folder to its place; a model of that name is replaced. Call with the name's lock held."""
    target = models_directory() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(prepared.with_name("replaced"))  # inside the working folder, which is removed afterwards
    prepared.rename(target)
    return target


def downloads_folder() -> Path:
    """Where unfinished downloads survive between runs. Made when missing."""
    folder = glass_home() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _partial_folder() -> Path:
    # not inside models_directory(): what lies there is listed as a pulled model
    folder = glass_home() / "partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
