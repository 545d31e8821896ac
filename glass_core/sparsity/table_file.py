"""Refinement tables as tensors of the artifact's file: `refinement.<profile>.<part>`.

Sparsities and thresholds are plain float32; score weights are float16 with scales.
"""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from glass_core.errors import ArtifactError, ConfigurationError
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.stored_tensor import SCALE_SUFFIX, read_scaled, read_stored, to_scaled

TABLE_PREFIX = "refinement."
MAX_POINTS = 1024
MAX_INPUTS = 1 << 17

_SPARSITIES, _THRESHOLDS = "sparsities", "thresholds"
_WEIGHTS = tuple(f"{stage}_weights" for stage in STAGES)
_PARTS = (_SPARSITIES, _THRESHOLDS, *(part + end for part in _WEIGHTS for end in ("", SCALE_SUFFIX)))


def table_tensors(tables: Mapping[str, RefinementTable]) -> dict[str, npt.NDArray[Any]]:
    """What to store of these tables, by tensor name."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for profile, table in tables.items():
        prefix = f"{TABLE_PREFIX}{profile}."
        tensors |= {prefix + _SPARSITIES: table.sparsities, prefix + _THRESHOLDS: table.thresholds}
        for stage, part in zip(STAGES, _WEIGHTS, strict=True):
            weights = getattr(table.weights, stage)
            tensors[prefix + part], tensors[prefix + part + SCALE_SUFFIX] = to_scaled(weights)
    return tensors


def read_tables(file: Any, present: set[str], shape: tuple[int, int]) -> dict[str, RefinementTable]:
    """The tables among the `present` tensors of a safetensors file, by profile, of a model of `shape` (num_layers, m).

    Raises ArtifactError.
    """
    names = {name for name in present if name.startswith(TABLE_PREFIX)}
    profiles = sorted({_profile(name) for name in names})
    expected = {f"{TABLE_PREFIX}{profile}.{part}" for profile in profiles for part in _PARTS}
    if names != expected:
        raise ArtifactError(
            f"refinement: missing tensors {sorted(expected - names)}, unknown tensors {sorted(names - expected)}"
        )
    return {profile: _read_table(file, profile, shape) for profile in profiles}


def _profile(name: str) -> str:
    return name.removeprefix(TABLE_PREFIX).removesuffix(SCALE_SUFFIX).rpartition(".")[0]


def _read_table(file: Any, profile: str, shape: tuple[int, int]) -> RefinementTable:
    prefix = f"{TABLE_PREFIX}{profile}."
    num_points = _length(file, prefix + _SPARSITIES, axis=0, axes=1, highest=MAX_POINTS)
    # the manifest does not know the model's hidden size; whoever loads the model checks it
    num_inputs = _length(file, prefix + _WEIGHTS[0], axis=1, axes=2, highest=MAX_INPUTS)
    sizes = (num_inputs, shape[1])
    try:
        weights = [
            read_scaled(file, prefix + part, (shape[0], size)) for part, size in zip(_WEIGHTS, sizes, strict=True)
        ]
        return RefinementTable(
            read_stored(file, prefix + _SPARSITIES, "F32", (num_points,)),
            read_stored(file, prefix + _THRESHOLDS, "F32", (num_points, len(STAGES), shape[0])),
            ScoreWeights(*weights),
        )
    except ConfigurationError as error:
        raise ArtifactError(f"refinement of profile {profile!r}: {error}") from error


def _length(file: Any, name: str, *, axis: int, axes: int, highest: int) -> int:
    """A tensor's length along an axis, before anything is read."""
    found = tuple(file.get_slice(name).get_shape())
    if len(found) != axes or not 1 <= found[axis] <= highest:
        raise ArtifactError(f"{name}: expected {axes} axes and 1 to {highest} along axis {axis}, got shape {found}")
    return int(found[axis])
