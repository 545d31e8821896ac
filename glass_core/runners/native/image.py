"""The weight image: one memory-mapped file with every tensor of a model in the layout the native kernels read.

    8 bytes   magic GLASSIMG
    uint32    format version
    uint32    CRC-32 of the header
    uint64    header bytes
    header    UTF-8 JSON padded with spaces: format, fingerprint, spec, exact, notes, payload_bytes, tensors
    payload   starts at a multiple of 4096; each tensor at a multiple of 64 bytes from there

All integers little-endian. `packing.py` says what the bytes of each kind of tensor mean. The writer streams: one tensor
in memory at a time, and the file appears under its name only when it is complete.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from glass_core.checkpoint.mapped_file import map_file
from glass_core.errors import CheckpointError
from glass_core.models.spec import ModelSpec, RopeSpec

MAGIC, VERSION = b"GLASSIMG", 8
FORMATS = ("int4", "int8", "bf16")
KINDS = ("f32", "rows_q4", "rows_q8", "rows_bf16", "columns", "column_scales", "coded_scales", "scale_units")
PAGE, ALIGNMENT = 4096, 64
MAX_HEADER_BYTES = 64 << 20
_PREAMBLE = struct.Struct("<8sIIQ")
_ENTRY_BYTES = 320  # more than the JSON of one tensor's entry without its name
_NOTES_BYTES = 16384


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """One tensor. `offset` counts from the payload's start; `shape` is (rows, columns) or (length,) in values, as the
    model sees it; rows lie `row_bytes` apart and hold `padded_cols` values, the surplus being zero."""

    kind: str
    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    padded_cols: int
    row_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image holds. `exact`: it decodes to the checkpoint's own values. `notes` say where it does not.

    `payload_offset` is the byte position of the payload in the file.
    """

    path: Path
    format: str
    fingerprint: str
    spec: ModelSpec
    exact: bool
    notes: tuple[str, ...]
    payload_offset: int
    payload_bytes: int
    tensors: Mapping[str, ImageTensor] = field(repr=False)


def image_path(model_dir: Path, image_format: str) -> Path:
    """Where a model's image of that format lies. The version is part of the name: an older image is not found, so it is
    made again, instead of being refused."""
    return model_dir / f"native-{image_format}-v{VERSION}.img"


def read_image(path: Path) -> ImageHeader:
    """Read and check the header.

    Raises CheckpointError when the file is unreadable, truncated, of another version, or its header damaged.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            preamble = file.read(_PREAMBLE.size)
            crc, header_bytes = _check_preamble(path, preamble, file_bytes)
            text = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if zlib.crc32(text) != crc:
        raise CheckpointError(f"{path}: the header is damaged (its checksum differs); make the image again")
    try:
        header = _header(path, json.loads(text), _round_up(_PREAMBLE.size + header_bytes, PAGE))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: malformed header ({type(error).__name__}: {error})") from error
    _check_tensors(header, file_bytes)
    return header


def _check_preamble(path: Path, preamble: bytes, file_bytes: int) -> tuple[int, int]:
    if len(preamble) < _PREAMBLE.size or not preamble.startswith(MAGIC):
        raise CheckpointError(f"{path}: not a weight image (it does not start with {MAGIC.decode()})")
    _, version, crc, header_bytes = _PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise CheckpointError(f"{path}: image version {version}, expected {VERSION}; make the image again")
    if header_bytes > min(MAX_HEADER_BYTES, file_bytes - _PREAMBLE.size):
        raise CheckpointError(f"{path}: truncated: a header of {header_bytes} bytes in a file of {file_bytes}")
    return crc, header_bytes


def _header(path: Path, values: Mapping[str, Any], payload_offset: int) -> ImageHeader:
    return ImageHeader(
        path=path,
        format=_one_of("format", values["format"], FORMATS),
        fingerprint=str(values["fingerprint"]),
        spec=_spec(values["spec"]),
        exact=bool(values["exact"]),
        notes=tuple(map(str, values["notes"])),
        payload_offset=payload_offset,
        payload_bytes=_size("payload_bytes", values["payload_bytes"]),
        tensors={name: _tensor(name, entry) for name, entry in values["tensors"].items()},
    )


def _spec(values: Mapping[str, Any]) -> ModelSpec:
    local = values["local_rope"]
    read = {
        "rope": RopeSpec(**values["rope"]),
        "local_rope": None if local is None else RopeSpec(**local),
        "sliding_window": tuple(values["sliding_window"]),
    }
    return ModelSpec(**{**values, **read})


def _tensor(name: str, entry: Mapping[str, Any]) -> ImageTensor:
    sizes = {key: _size(f"{name}.{key}", entry[key]) for key in ("offset", "num_bytes", "padded_cols", "row_bytes")}
    shape = tuple(_size(f"{name}.shape", size) for size in entry["shape"])
    if not 1 <= len(shape) <= 2:
        raise ValueError(f"{name}.shape has {len(shape)} dimensions")
    kind = _one_of(f"{name}.kind", entry["kind"], KINDS)
    return ImageTensor(kind=kind, shape=shape, crc32=_size(f"{name}.crc32", entry["crc32"]), **sizes)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
    return str(value)


def _size(name: str, value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}, expected a size")
    return value


def _check_tensors(header: ImageHeader, file_bytes: int) -> None:
    """Tensors lie inside the payload, in order, without overlap, and the payload inside the file."""
    end = header.payload_offset + header.payload_bytes
    if end != file_bytes:
        kind = "truncated" if end > file_bytes else "too long"
        raise CheckpointError(f"{header.path}: {kind}: the header promises {end} bytes, the file has {file_bytes}")
    position = 0
    for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].offset):
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        if tensor.offset < position or tensor.offset % ALIGNMENT or tensor.num_bytes != rows * tensor.row_bytes:
            raise CheckpointError(f"{header.path}: tensor {name!r} overlaps another, is unaligned or of a wrong size")
        position = tensor.offset + tensor.num_bytes
        if tensor.padded_cols < tensor.shape[-1] or position > header.payload_bytes:
            raise CheckpointError(f"{header.path}: tensor {name!r} does not fit its place")


def check_image(header: ImageHeader, *, fingerprint: str, spec: ModelSpec) -> None:
    """Raise CheckpointError when the image was made of other weights or for another architecture."""
    if header.fingerprint != fingerprint:
        raise CheckpointError(
            f"{header.path}: made of other weights (fingerprint {header.fingerprint[:12]}, the checkpoint's is "
            f"{fingerprint[:12]}); make it again with `glass quantize`"
        )
    if header.spec != spec:
        ours, theirs = asdict(spec), asdict(header.spec)
        different = ", ".join(sorted(key for key in ours if ours[key] != theirs[key]))
        raise CheckpointError(
            f"{header.path}: made for another architecture (different: {different}); make it again with "
            "`glass quantize`"
        )


def map_payload(header: ImageHeader) -> npt.NDArray[np.uint8]:
    """The payload's bytes, mapped."""
    content = map_file(header.path)
    return np.frombuffer(content, np.uint8, header.payload_bytes, header.payload_offset)


def verify_payload(header: ImageHeader) -> None:
    """Read every tensor once and compare its checksum. Raises CheckpointError naming the first damaged one."""
    payload = map_payload(header)
    for name, tensor in header.tensors.items():
        if zlib.crc32(payload[tensor.offset : tensor.offset + tensor.num_bytes].data) != tensor.crc32:
            raise CheckpointError(f"{header.path}: tensor {name!r} is damaged (its checksum differs)")


class ImageWriter:
    """Writes one image; a context manager. On success the file is in place at the end, on an exception nothing is.

    `names` are the tensors that will be added, in order: they bound the header, which lies before the payload.
    """

    def __init__(self, path: Path, *, image_format: str, fingerprint: str, spec: ModelSpec, names: list[str]) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        self._values = {"format": image_format, "fingerprint": fingerprint, "spec": asdict(spec)}
        self._names = names
        self._tensors: dict[str, ImageTensor] = {}
        bound = _NOTES_BYTES + sum(len(name.encode()) + _ENTRY_BYTES for name in names)
        self._payload_offset = _round_up(_PREAMBLE.size + bound + len(json.dumps(asdict(spec))), PAGE)
        self._position = 0
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._file.seek(self._payload_offset)
        return self

    def add(
        self, name: str, kind: str, rows: npt.NDArray[np.uint8], *, shape: tuple[int, ...], padded_cols: int
    ) -> None:
        """Append a tensor. rows: (number of rows, bytes of a row)."""
        if name != self._names[len(self._tensors)]:
            raise CheckpointError(f"tensor {name!r}: expected {self._names[len(self._tensors)]!r}")
        offset = _round_up(self._position, ALIGNMENT)
        self._file.write(b"\0" * (offset - self._position))
        content = np.ascontiguousarray(rows)
        self._file.write(content.data)
        crc = zlib.crc32(content.data)
        self._tensors[name] = ImageTensor(kind, offset, content.nbytes, shape, padded_cols, rows.shape[1], crc)
        self._position = offset + content.nbytes

    def note(self, text: str) -> None:
        """Say where the image differs from the checkpoint; an image without notes is exact."""
        self._notes.append(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                self._partial.replace(self._path)
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if missing := self._names[len(self._tensors) :]:
            raise CheckpointError(f"{self._path}: {len(missing)} tensors were not written: {', '.join(missing[:5])}")
        payload_bytes = _round_up(self._position, ALIGNMENT)
        self._file.write(b"\0" * (payload_bytes - self._position))
        self._file.seek(0)
        self._file.write(self._header(payload_bytes))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _header(self, payload_bytes: int) -> bytes:
        header_bytes = self._payload_offset - _PREAMBLE.size
        values = {
            **self._values,
            "exact": not self._notes,
            "notes": self._notes,
            "payload_bytes": payload_bytes,
            "tensors": {name: asdict(tensor) for name, tensor in self._tensors.items()},
        }
        text = json.dumps(values).encode().ljust(header_bytes)
        if len(text) > header_bytes:
            raise CheckpointError(f"{self._path}: the header needs {len(text)} bytes, {header_bytes} were left for it")
        return _PREAMBLE.pack(MAGIC, VERSION, zlib.crc32(text), header_bytes) + text


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
