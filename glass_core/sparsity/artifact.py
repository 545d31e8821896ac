"""The artifact's file: one safetensors file whose metadata key `manifest` holds the manifest and profiles as JSON.

Per-neuron tensors are stored as float16 with one float32 scale per layer (`<name>` and `<name>.scale`, value = stored *
scale), so that the default model's artifact is about 1 MB; plain float32 is read as well. Files are untrusted: never
pickle, every size, shape, type and value is checked. Writing is atomic.
"""

import importlib.resources
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from glass_core.errors import ArtifactError, ConfigurationError
from glass_core.expected_kl import ExpectedKl
from glass_core.sparsity.budget import Profile
from glass_core.sparsity.expected_kl_json import tables_from_json, tables_to_json
from glass_core.sparsity.global_stats import (
    LAYER_TENSORS,
    NEURON_TENSORS,
    REQUIRED_NEURON_TENSORS,
    GlobalStatistics,
    check_fingerprint,
    expected_shape,
)
from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.manifest import (
    FORMAT_VERSION,
    ArtifactManifest,
    manifest_from_json_object,
    parse_json,
)
from glass_core.sparsity.stored_tensor import SCALE_SUFFIX, read_scaled, read_stored, to_scaled
from glass_core.sparsity.table_file import TABLE_PREFIX, read_tables, table_tensors

__all__ = [
    "FORMAT_VERSION",
    "ArtifactManifest",
    "GlobalStatistics",
    "check_fingerprint",
    "read_artifact",
    "read_manifest",
    "shipped_artifact",
    "write_artifact",
]

# Generous: a model of 128 layers and 32768 neurons each needs 75 MB.
MAX_FILE_BYTES = 256 << 20

_METADATA_KEY = "manifest"
_PROFILES_KEY = "profiles"
_EXPECTED_KL_KEY = "expected_kl"


def write_artifact(path: Path, statistics: GlobalStatistics) -> None:
    """Write atomically: readers see the old file or the whole new one. Same statistics, same bytes."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in statistics.tensors():
        if name in LAYER_TENSORS:
            tensors[name] = np.ascontiguousarray(tensor)
        else:
            tensors[name], tensors[name + SCALE_SUFFIX] = to_scaled(tensor)
    tensors |= table_tensors(statistics.refinement)
    document = statistics.manifest.to_json_object() | {_PROFILES_KEY: _profiles_to_json(statistics.profiles)}
    if statistics.expected_kl:
        document[_EXPECTED_KL_KEY] = tables_to_json(statistics.expected_kl)
    metadata = {_METADATA_KEY: json.dumps(document, sort_keys=True, allow_nan=False)}
    _replace_file(path, safetensors.numpy.save(tensors, metadata))


def read_artifact(path: Path) -> GlobalStatistics:
    """Read and check everything. Raises ArtifactError saying what was expected."""
    with _opened(path) as file:
        manifest, profiles, expected_kl = _read_document(file)
        present = set(file.keys())
        tables = read_tables(file, present, (manifest.num_layers, manifest.intermediate_size))
        present = {name for name in present if not name.startswith(TABLE_PREFIX)}
        _check_names(present)
        tensors = {
            name: _read_tensor(file, name, present, expected_shape(manifest, name))
            for name in NEURON_TENSORS + LAYER_TENSORS
            if name in present
        }
        return GlobalStatistics(
            manifest=manifest, profiles=profiles, refinement=tables, expected_kl=expected_kl, **tensors
        )


def read_manifest(path: Path) -> ArtifactManifest:
    """The manifest alone, from the file's header. Raises ArtifactError."""
    with _opened(path) as file:
        return _read_document(file)[0]


def shipped_artifact(fingerprint: str, *, directory: Path | None = None) -> Path | None:
    """The artifact in `directory` (default: those that ship with glass) measured on these weights; None if none was."""
    folder = _shipped_directory() if directory is None else directory
    for path in sorted(folder.glob("*.safetensors")):
        if read_manifest(path).fingerprint == fingerprint:
            return path
    return None


def _shipped_directory() -> Path:
    return Path(str(importlib.resources.files("glass_core") / "data"))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The safetensors file, with every failure inside turned into an ArtifactError that names the file."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ArtifactError(f"at most {MAX_FILE_BYTES} bytes are read, the file has {size}")
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except ArtifactError as error:
        raise ArtifactError(f"artifact {path}: {error}") from error
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"artifact {path}: expected a complete safetensors file ({error})") from error
    except OSError as error:
        raise ArtifactError(f"artifact {path}: cannot be read ({error.strerror or error})") from error


def _read_document(file: Any) -> tuple[ArtifactManifest, dict[str, Profile], dict[str, dict[str, ExpectedKl]]]:
    text = (file.metadata() or {}).get(_METADATA_KEY)
    if text is None:
        raise ArtifactError(f"no {_METADATA_KEY!r} in the metadata: expected a file written by `glass calibrate`")
    document = parse_json(text)
    is_object = isinstance(document, dict)
    profiles = document.pop(_PROFILES_KEY, None) if is_object else None
    expected_kl = document.pop(_EXPECTED_KL_KEY, {}) if is_object else {}
    return manifest_from_json_object(document), _profiles_from_json(profiles), tables_from_json(expected_kl)


def _check_names(present: set[str]) -> None:
    known = {*NEURON_TENSORS, *LAYER_TENSORS} | {name + SCALE_SUFFIX for name in NEURON_TENSORS}
    if present - known:
        raise ArtifactError(f"unknown tensors {sorted(present - known)}")
    orphans = [name for name in sorted(present) if name.removesuffix(SCALE_SUFFIX) not in present]
    if orphans:
        raise ArtifactError(f"{', '.join(orphans)} without its tensor")
    missing = [name for name in REQUIRED_NEURON_TENSORS if name not in present]
    if missing:
        raise ArtifactError(f"missing tensors {missing}")


def _read_tensor(file: Any, name: str, present: set[str], shape: tuple[int, ...]) -> FloatArray:
    """A tensor in float32. Shape and type are checked in the header, before anything is read."""
    if name + SCALE_SUFFIX in present:
        return read_scaled(file, name, shape)
    return read_stored(file, name, "F32", shape).astype(np.float32)


def _profiles_to_json(profiles: Mapping[str, Profile]) -> dict[str, Any]:
    return {
        name: {"prune_weights": profile.prune_weights, "lambdas": profile.lambdas} for name, profile in profiles.items()
    }


def _profiles_from_json(raw: Any) -> dict[str, Profile]:
    if not isinstance(raw, dict):
        raise ArtifactError(f"manifest: {_PROFILES_KEY} must be an object, got {raw!r}")
    return {name: _profile_from_json(name, value) for name, value in raw.items()}


def _profile_from_json(name: str, raw: Any) -> Profile:
    if not isinstance(raw, dict) or raw.keys() != {"prune_weights", "lambdas"}:
        raise ArtifactError(f"profile {name!r}: expected an object with prune_weights and lambdas, got {raw!r}")
    try:
        lambdas = None if raw["lambdas"] is None else _numbers(raw["lambdas"])
        return Profile(name, _numbers(raw["prune_weights"]), lambdas)
    except (TypeError, ConfigurationError) as error:
        raise ArtifactError(f"profile {name!r}: {error}") from error


def _numbers(raw: Any) -> tuple[float, ...]:
    if not isinstance(raw, list) or not all(type(value) in (int, float) for value in raw):
        raise TypeError(f"expected a list of numbers, got {raw!r}")
    return tuple(float(value) for value in raw)


def _replace_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
