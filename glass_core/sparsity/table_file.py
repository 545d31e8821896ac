"""Refinement tables as tensors of the artifact's file: `refinement.<profile>.<part>`, plain float32."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from glass_core.errors import ArtifactError, ConfigurationError
from glass_core.sparsity.refinement_table import RefinementTable

TABLE_PREFIX = "refinement."
MAX_POINTS = 1024

_PARTS = ("sparsities", "up_thresholds", "down_thresholds")


def table_tensors(tables: Mapping[str, RefinementTable]) -> dict[str, npt.NDArray[Any]]:
    """What to store of these tables, by tensor name."""
    return {
        f"{TABLE_PREFIX}{profile}.{part}": getattr(table, part) for profile, table in tables.items() for part in _PARTS
    }


def read_tables(file: Any, present: set[str], num_layers: int) -> dict[str, RefinementTable]:
    """The tables among the `present` tensors of a safetensors file, by profile. Raises ArtifactError."""
    names = {name for name in present if name.startswith(TABLE_PREFIX)}
    profiles = sorted({name.removeprefix(TABLE_PREFIX).rpartition(".")[0] for name in names})
    expected = {f"{TABLE_PREFIX}{profile}.{part}" for profile in profiles for part in _PARTS}
    if names != expected:
        raise ArtifactError(
            f"refinement: missing tensors {sorted(expected - names)}, unknown tensors {sorted(names - expected)}"
        )
    return {profile: _read_table(file, profile, num_layers) for profile in profiles}


def read_stored(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A tensor of this type and shape, checked in the header before anything is read. Raises ArtifactError."""
    header = file.get_slice(name)
    found = (header.get_dtype(), tuple(header.get_shape()))
    if found != (dtype, shape):
        raise ArtifactError(f"{name}: expected {dtype} of shape {shape}, got {found[0]} of shape {found[1]}")
    tensor: npt.NDArray[Any] = file.get_tensor(name)
    return tensor


def _read_table(file: Any, profile: str, num_layers: int) -> RefinementTable:
    prefix = f"{TABLE_PREFIX}{profile}."
    shape = tuple(file.get_slice(prefix + _PARTS[0]).get_shape())
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_POINTS:
        raise ArtifactError(f"{prefix}{_PARTS[0]}: expected 1 to {MAX_POINTS} sparsities, got shape {shape}")
    try:
        return RefinementTable(
            read_stored(file, prefix + _PARTS[0], "F32", shape),
            read_stored(file, prefix + _PARTS[1], "F32", (shape[0], num_layers)),
            read_stored(file, prefix + _PARTS[2], "F32", (shape[0], num_layers)),
        )
    except ConfigurationError as error:
        raise ArtifactError(f"refinement of profile {profile!r}: {error}") from error
