"""ArtifactManifest: who an artifact belongs to and how it was made, as JSON inside the artifact's file.

Reading is strict: the manifest comes from a file that someone may have downloaded, so every field's type is checked
and an unknown or missing field is an error, not a default.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from glass_core.errors import ArtifactError

FORMAT_VERSION = 3
MAX_MANIFEST_CHARS = 1 << 20

CorpusValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ArtifactManifest:
    """Provenance of a global-statistics artifact.

    `fingerprint` identifies the weights it was measured on. `formulas` says how each tensor is defined. `corpus`:
    source (null, chat or a file's name), sampler, seed, num_sequences, num_tokens … `versions`: of the software that
    measured. `command` repeats the measurement.
    """

    model_name: str
    fingerprint: str
    num_layers: int
    intermediate_size: int
    formulas: Mapping[str, str]
    corpus: Mapping[str, CorpusValue]
    versions: Mapping[str, str]
    command: str
    format_version: int = FORMAT_VERSION

    def to_json_object(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def manifest_from_json_object(raw: Any) -> ArtifactManifest:
    """The inverse of `to_json_object`. Raises ArtifactError naming the field that is wrong."""
    if not isinstance(raw, dict):
        raise ArtifactError(f"manifest: expected a JSON object, got {type(raw).__name__}")
    _check_version(raw.get("format_version"))
    expected = {field.name for field in fields(ArtifactManifest)}
    if raw.keys() != expected:
        raise ArtifactError(
            f"manifest: missing fields {sorted(expected - raw.keys())}, unknown fields {sorted(raw.keys() - expected)}"
        )
    return ArtifactManifest(
        model_name=_string(raw, "model_name"),
        fingerprint=_string(raw, "fingerprint"),
        num_layers=_positive(raw, "num_layers"),
        intermediate_size=_positive(raw, "intermediate_size"),
        formulas=_mapping(raw, "formulas", str),
        corpus=_mapping(raw, "corpus", (str, int, float, bool, type(None))),
        versions=_mapping(raw, "versions", str),
        command=_string(raw, "command"),
    )


def parse_json(text: str) -> Any:
    """JSON of bounded size, without the NaN and Infinity that Python's reader tolerates. Raises ArtifactError."""
    if len(text) > MAX_MANIFEST_CHARS:
        raise ArtifactError(f"manifest: at most {MAX_MANIFEST_CHARS} characters are read, got {len(text)}")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"manifest: expected valid JSON ({error})") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_version(version: Any) -> None:
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ArtifactError(
            f"manifest: format_version is {version!r}, this version of glass reads {FORMAT_VERSION}; "
            "run `glass calibrate` again"
        )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _string(raw: Mapping[str, Any], name: str) -> str:
    value = raw[name]
    if not isinstance(value, str):
        raise ArtifactError(f"manifest: {name} must be a string, got {value!r}")
    return value


def _positive(raw: Mapping[str, Any], name: str) -> int:
    value = raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"manifest: {name} must be a positive integer, got {value!r}")
    return value


def _mapping(raw: Mapping[str, Any], name: str, kinds: type | tuple[type, ...]) -> dict[str, Any]:
    value = raw[name]
    if not isinstance(value, dict) or not all(isinstance(item, kinds) for item in value.values()):
        raise ArtifactError(f"manifest: {name} must be an object of plain values, got {value!r}")
    return value
