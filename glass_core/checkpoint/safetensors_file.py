"""The safetensors container: a bounds-checked header reader and a streaming float32 writer.

Format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a JSON header
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, then the data. The header is read here rather than with the
library because bfloat16 has no numpy type and because a truncated file deserves an error that says so.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from glass_core.errors import CheckpointError

MAX_HEADER_BYTES = 100 << 20  # the limit of the reference implementation
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lies. `name` is its name in the file, `dtype` safetensors' (F32, BF16, …), `start` the byte
    position in the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def read_tensor_refs(path: Path) -> dict[str, TensorRef]:
    """Every tensor of one file, by its name in the file.

    Raises CheckpointError when the file is truncated, its header malformed, or data ranges overlap or leave the file.
    """
    try:
        file_bytes = path.stat().st_size
        header, data_start = _read_header(path, file_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    refs = {name: _tensor_ref(path, name, entry, data_start) for name, entry in header.items() if name != _METADATA}
    _check_ranges(path, refs, data_start, file_bytes)
    return refs


def _read_header(path: Path, file_bytes: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if file_bytes < _LENGTH_BYTES or length > file_bytes - _LENGTH_BYTES or length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: truncated or not safetensors (header of {length} bytes, file {file_bytes})")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not an object")
    return header, _LENGTH_BYTES + length


def _tensor_ref(path: Path, name: str, entry: object, data_start: int) -> TensorRef:
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and dtype in _ITEM_BYTES and _are_sizes(shape) and _are_sizes(offsets)):
        raise CheckpointError(f"{path}: malformed header entry for tensor {name!r}")
    if len(offsets) != 2:
        raise CheckpointError(f"{path}: malformed header entry for tensor {name!r}")
    begin, end = offsets
    num_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != num_bytes:
        raise CheckpointError(f"{path}: tensor {name!r} {dtype}{shape} needs {num_bytes} bytes, has {end - begin}")
    return TensorRef(path, name, dtype, tuple(shape), data_start + begin, num_bytes)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_ranges(path: Path, refs: Mapping[str, TensorRef], data_start: int, file_bytes: int) -> None:
    """Tensors must tile the data section exactly, as the format requires: no overlap, no gap, nothing missing."""
    position = data_start
    for ref in sorted(refs.values(), key=lambda ref: (ref.start, ref.num_bytes)):
        if ref.start != position:
            raise CheckpointError(f"{path}: data of tensor {ref.name!r} overlaps another or leaves a gap")
        position += ref.num_bytes
    if position != file_bytes:
        kind = "truncated" if position > file_bytes else "too long"
        raise CheckpointError(f"{path}: {kind}: the header promises {position} bytes, the file has {file_bytes}")


def write_float32(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, npt.NDArray[np.float32]]],
) -> None:
    """Write float32 tensors one at a time, so that only one is in memory.

    `tensors` must yield the names of `shapes` in the same order. Raises CheckpointError when it does not, and
    whatever `tensors` raises.
    """
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}  # transformers wants to see the format key
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # keeps the data aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for (expected, shape), (name, tensor) in zip(shapes.items(), tensors, strict=True):
            if name != expected or tensor.shape != shape or tensor.dtype != np.float32:
                raise CheckpointError(f"tensor {name!r} {tensor.dtype}{tensor.shape}: expected {expected!r} {shape}")
            file.write(np.ascontiguousarray(tensor).astype("<f4", copy=False).data)
