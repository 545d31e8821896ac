"""Refinement tables as tensors of the artifact's file: `refinement.<profile>.<part>`.

Sparsities and thresholds are plain float32; a table's own weights, where it has them, are float16 with scales.
"""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from glass_core.errors import ArtifactError, ConfigurationError
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.stored_tensor import SCALE_SUFFIX, read_scaled, read_stored, to_scaled

TABLE_PREFIX = "refinement."
MAX_POINTS = 1024

_PARTS = ("sparsities", "up_thresholds", "down_thresholds")
_WEIGHTS = ("up_weights", "down_weights")


def table_tensors(tables: Mapping[str, RefinementTable]) -> dict[str, npt.NDArray[Any]]:
    """What to store of these tables, by tensor name."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for profile, table in tables.items():
        prefix = f"{TABLE_PREFIX}{profile}."
        tensors |= {prefix + part: getattr(table, part) for part in _PARTS}
        for part in _WEIGHTS:
            weights = getattr(table, part)
            if weights is not None:
                tensors[prefix + part], tensors[prefix + part + SCALE_SUFFIX] = to_scaled(weights)
    return tensors


def read_tables(file: Any, present: set[str], shape: tuple[int, int]) -> dict[str, RefinementTable]:
    """The tables among the `present` tensors of a safetensors file, by profile, of a model of `shape` (num_layers, m).

    Raises ArtifactError.
    """
    names = {name for name in present if name.startswith(TABLE_PREFIX)}
    profiles = sorted({_profile(name) for name in names})
    expected = {f"{TABLE_PREFIX}{profile}.{part}" for profile in profiles for part in _PARTS}
    weighted = {profile for profile in profiles if f"{TABLE_PREFIX}{profile}.{_WEIGHTS[0]}" in names}
    parts = [part + end for part in _WEIGHTS for end in ("", SCALE_SUFFIX)]
    expected |= {f"{TABLE_PREFIX}{profile}.{part}" for profile in weighted for part in parts}
    if names != expected:
        raise ArtifactError(
            f"refinement: missing tensors {sorted(expected - names)}, unknown tensors {sorted(names - expected)}"
        )
    return {profile: _read_table(file, profile, shape, weighted=profile in weighted) for profile in profiles}


def _profile(name: str) -> str:
    return name.removeprefix(TABLE_PREFIX).removesuffix(SCALE_SUFFIX).rpartition(".")[0]


def _read_table(file: Any, profile: str, shape: tuple[int, int], *, weighted: bool) -> RefinementTable:
    prefix = f"{TABLE_PREFIX}{profile}."
    points = tuple(file.get_slice(prefix + _PARTS[0]).get_shape())
    if len(points) != 1 or not 1 <= points[0] <= MAX_POINTS:
        raise ArtifactError(f"{prefix}{_PARTS[0]}: expected 1 to {MAX_POINTS} sparsities, got shape {points}")
    try:
        return RefinementTable(
            read_stored(file, prefix + _PARTS[0], "F32", points),
            read_stored(file, prefix + _PARTS[1], "F32", (points[0], shape[0])),
            read_stored(file, prefix + _PARTS[2], "F32", (points[0], shape[0])),
            *(read_scaled(file, prefix + part, shape) if weighted else None for part in _WEIGHTS),
        )
    except ConfigurationError as error:
        raise ArtifactError(f"refinement of profile {profile!r}: {error}") from error
