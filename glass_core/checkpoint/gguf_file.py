"""The GGUF container: a bounds-checked reader of metadata and tensor positions, and dequantization of one tensor.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is parsed here, not with
`gguf.GGUFReader`, because that one runs past the end of a malformed file (a forged array length keeps it busy for
hours) and is slow on large vocabularies; block sizes and dequantization come from the `gguf` package.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from glass_core.checkpoint.mapped_file import map_file
from glass_core.errors import CheckpointError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MIN_ENTRY_BYTES = 13  # the shortest key-value entry or tensor record: bounds the counts before looping


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. `shape` is numpy's order (rows first), `type_name` GGML's (F32, Q4_1, …)."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A mapped GGUF file. `metadata` values are Python scalars, strings, or lists of them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    content: memoryview

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as float32, in its shape. Raises UnsupportedModelError for a quantization we cannot undo."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self.content, np.uint8, tensor.num_bytes, tensor.start)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        try:
            values = gguf.dequantize(rows, gguf.GGMLQuantizationType[tensor.type_name])
        except NotImplementedError as error:
            raise UnsupportedModelError(f"{self.path}: tensor {name!r} is {tensor.type_name}: {error}") from error
        # a copy of what the library leaves as a view: an array into the map would keep the file mapped
        return np.array(values, np.float32, copy=True if tensor.type_name == "F32" else None).reshape(tensor.shape)


def open_gguf(path: Path) -> GgufFile:
    """Map and parse `path`. Raises CheckpointError when it is unreadable, truncated or malformed."""
    return _parse(path, map_file(path))


class _Cursor:
    """Reads forward through the header; every read is checked against the end of the file."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self.path = path
        self.content = content
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.content) - self.position

    def take(self, num_bytes: int) -> memoryview:
        if num_bytes > self.remaining:
            raise CheckpointError(f"{self.path}: truncated: the header goes on after the end of the file")
        self.position += num_bytes
        return self.content[self.position - num_bytes : self.position]

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}") if count * struct.calcsize(code) <= self.remaining else None
        if layout is None:
            raise CheckpointError(f"{self.path}: truncated: {count} values announced, {self.remaining} bytes left")
        return layout.unpack(self.take(layout.size))

    def integer(self, code: str) -> int:
        return int(self.scalars(code)[0])

    def count(self, what: str) -> int:
        """A 64-bit count of things that take at least some bytes each."""
        value = self.integer("Q")
        if value > self.remaining // _MIN_ENTRY_BYTES:
            raise CheckpointError(f"{self.path}: truncated or malformed: {value} {what} in {self.remaining} bytes")
        return value

    def string(self) -> str:
        raw = bytes(self.take(self.integer("Q")))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: malformed: a string is not UTF-8 ({error})") from error


def _parse(path: Path, content: memoryview) -> GgufFile:
    cursor = _Cursor(path, content)
    if bytes(content[:4]) != MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file (it does not start with {MAGIC.decode()})")
    cursor.take(4)
    version = cursor.integer("I")
    if version not in VERSIONS:
        raise CheckpointError(f"{path}: GGUF version {version} (or big-endian); supported: {VERSIONS}")
    num_tensors, num_entries = cursor.count("tensors"), cursor.count("metadata entries")
    metadata = _read_metadata(cursor, num_entries)
    records = [_read_record(cursor) for _ in range(num_tensors)]
    data_start = _align(cursor, metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    tensors: dict[str, GgufTensor] = {}
    for record in records:
        tensor = _place(path, record, data_start, len(content))
        if tensors.setdefault(tensor.name, tensor) is not tensor:
            raise CheckpointError(f"{path}: tensor {tensor.name!r} is there twice")
    return GgufFile(path, metadata, tensors, content)


def _read_metadata(cursor: _Cursor, num_entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key, kind = cursor.string(), cursor.integer("I")
        if key in metadata:
            raise CheckpointError(f"{cursor.path}: metadata key {key!r} is there twice")
        metadata[key] = _read_array(cursor, key) if kind == _ARRAY else _read_scalar(cursor, key, kind)
    return metadata


def _read_scalar(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string()
    if kind not in _SCALARS:
        raise CheckpointError(f"{cursor.path}: metadata key {key!r} has unknown type {kind}")
    return cursor.scalars(_SCALARS[kind])[0]


def _read_array(cursor: _Cursor, key: str) -> list[Any]:
    kind, count = cursor.integer("I"), cursor.integer("Q")
    if kind == _STRING:
        if count > cursor.remaining // 8:
            raise CheckpointError(f"{cursor.path}: truncated or malformed: {key!r} announces {count} strings")
        return [cursor.string() for _ in range(count)]
    if kind not in _SCALARS:
        raise CheckpointError(f"{cursor.path}: metadata key {key!r} is an array of unknown or nested type {kind}")
    return list(cursor.scalars(_SCALARS[kind], count))


def _read_record(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, dimensions (fastest first), type and offset of one tensor."""
    name, num_dimensions = cursor.string(), cursor.integer("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.path}: tensor {name!r} has {num_dimensions} dimensions")
    dimensions = cursor.scalars("Q", num_dimensions)
    return name, dimensions, cursor.integer("I"), cursor.integer("Q")


def _align(cursor: _Cursor, alignment: object) -> int:
    """First byte of the data section."""
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{cursor.path}: general.alignment is {alignment!r}, expected a power of two")
    return -(-cursor.position // alignment) * alignment


def _place(path: Path, record: tuple[str, tuple[int, ...], int, int], data_start: int, file_bytes: int) -> GgufTensor:
    name, dimensions, type_id, offset = record
    try:
        kind = gguf.GGMLQuantizationType(type_id)
    except ValueError as error:
        raise UnsupportedModelError(f"{path}: tensor {name!r} has unknown quantization type {type_id}") from error
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if dimensions[0] % block_values or 0 in dimensions:
        raise CheckpointError(f"{path}: tensor {name!r} has dimensions {dimensions}, not whole {kind.name} blocks")
    num_bytes = math.prod(dimensions) // block_values * block_bytes
    if data_start + offset + num_bytes > file_bytes:
        raise CheckpointError(f"{path}: truncated: tensor {name!r} ends after the end of the file")
    return GgufTensor(name, kind.name, tuple(reversed(dimensions)), data_start + offset, num_bytes)
