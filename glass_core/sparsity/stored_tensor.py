"""Tensors as an artifact's file stores them: plain float32, or float16 with one float32 scale per layer.

Files are untrusted: type and shape are checked in the header before anything is read.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from glass_core.errors import ArtifactError
from glass_core.sparsity.local_stats import FloatArray

SCALE_SUFFIX = ".scale"
# A layer's largest value is stored as this, near float16's end (65504): small values keep their precision longer.
_FLOAT16_TOP = 32768.0


def read_stored(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A tensor of this type and shape, as it is stored. Raises ArtifactError."""
    header = file.get_slice(name)
    found = (header.get_dtype(), tuple(header.get_shape()))
    if found != (dtype, shape):
        raise ArtifactError(f"{name}: expected {dtype} of shape {shape}, got {found[0]} of shape {found[1]}")
    tensor: npt.NDArray[Any] = file.get_tensor(name)
    return tensor


def read_scaled(file: Any, name: str, shape: tuple[int, ...]) -> FloatArray:
    """A (num_layers, m) tensor stored as float16 and its scales, in float32. Raises ArtifactError."""
    stored = read_stored(file, name, "F16", shape)
    scale = read_stored(file, name + SCALE_SUFFIX, "F32", shape[:1])
    with np.errstate(over="ignore", invalid="ignore"):  # hostile values become inf or NaN and are refused as such
        values: FloatArray = stored.astype(np.float32) * scale[:, np.newaxis]
        return values


def to_scaled(tensor: FloatArray) -> tuple[npt.NDArray[np.float16], FloatArray]:
    """Stored values and per-layer scales of a (num_layers, m) tensor."""
    scale = (np.abs(tensor).max(axis=1) / _FLOAT16_TOP).astype(np.float32)
    scale[scale == 0] = 1.0  # an all-zero layer
    return (tensor / scale[:, np.newaxis]).astype(np.float16), scale


def as_stored(tensor: FloatArray) -> FloatArray:
    """The (num_layers, m) tensor that a reader finds where this one was written."""
    stored, scale = to_scaled(tensor)
    values: FloatArray = stored.astype(np.float32) * scale[:, np.newaxis]
    return values
