"""Expected-KL tables as JSON of the artifact's metadata: {profile: {method or "refined": {sparsities, kl, low, high}}}.

An artifact without them is an older one, and fine: then nothing is expected.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from glass_core.errors import ArtifactError, ConfigurationError
from glass_core.expected_kl import ExpectedKl, ExpectedKlTables

_PARTS = {part.name for part in fields(ExpectedKl)}


def tables_to_json(tables: ExpectedKlTables) -> dict[str, Any]:
    return {
        profile: {method: asdict(expected) for method, expected in by_method.items()}
        for profile, by_method in tables.items()
    }


def tables_from_json(raw: Any) -> dict[str, dict[str, ExpectedKl]]:
    """The inverse of `tables_to_json`. Raises ArtifactError naming the profile and method that are wrong."""
    if not isinstance(raw, dict) or not all(isinstance(value, dict) for value in raw.values()):
        raise ArtifactError(f"manifest: expected_kl must be an object of objects, got {raw!r}")
    return {
        profile: {method: _table(f"expected_kl of {profile!r}, {method!r}", value) for method, value in methods.items()}
        for profile, methods in raw.items()
    }


def _table(what: str, raw: Any) -> ExpectedKl:
    if not isinstance(raw, dict) or raw.keys() != _PARTS:
        raise ArtifactError(f"{what}: expected an object of {', '.join(sorted(_PARTS))}, got {raw!r}")
    for name, values in raw.items():
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ArtifactError(f"{what}: {name} must be a list of numbers, got {values!r}")
    try:
        return ExpectedKl(**{name: _floats(values) for name, values in raw.items()})
    except (ConfigurationError, OverflowError) as error:
        raise ArtifactError(f"{what}: {error}") from error


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
