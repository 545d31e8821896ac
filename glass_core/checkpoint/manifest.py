"""`glass.json`: what a prepared checkpoint is and where it came from.

It holds the fingerprint so that start-up need not hash the weights, and the sizes of the weight files so that a
replaced file is noticed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from glass_core.checkpoint.json_file import read_json_object, write_json_object
from glass_core.config import PREPARED_MANIFEST
from glass_core.errors import CheckpointError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class PreparedManifest:
    """`source` says what was pulled (a package, a folder, a file), `quantization` the stored type of a GGUF's weights
    (None = as in the source), `weight_files` maps a file name to its bytes."""

    name: str
    model_type: str
    source: str
    license: str | None
    quantization: str | None
    fingerprint: str
    weight_files: Mapping[str, int]
    glass_version: str
    format_version: int = field(default=FORMAT_VERSION)


def write_manifest(model_dir: Path, manifest: PreparedManifest) -> None:
    write_json_object(model_dir / PREPARED_MANIFEST, asdict(manifest))


def read_manifest(model_dir: Path) -> PreparedManifest:
    """Raises CheckpointError when the manifest is malformed, of another version, or does not fit the weight files."""
    path = model_dir / PREPARED_MANIFEST
    values = read_json_object(path)
    if values.get("format_version") != FORMAT_VERSION:
        found = values.get("format_version")
        raise CheckpointError(f"{path}: format_version {found!r}, expected {FORMAT_VERSION}; pull the model again")
    try:
        manifest = PreparedManifest(**values)
    except TypeError as error:
        raise CheckpointError(f"{path}: malformed manifest ({error}); pull the model again") from error
    if not isinstance(manifest.fingerprint, str) or not isinstance(manifest.weight_files, Mapping):
        raise CheckpointError(f"{path}: malformed manifest (fingerprint or weight_files); pull the model again")
    _check_weight_files(model_dir, manifest.weight_files)
    return manifest


def _check_weight_files(model_dir: Path, weight_files: Mapping[str, int]) -> None:
    for name, expected in weight_files.items():
        path = model_dir / Path(name).name
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            raise CheckpointError(f"{path}: {found} bytes, the manifest says {expected}; pull the model again")
