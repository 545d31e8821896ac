"""What the bytes of an image's tensors mean: quantized blocks to packed rows, and back.

A row of K values is padded to Kp, a multiple of 64; a group is 32 values along K. Padding has code 0.

    rows_q4    Kp/2 bytes of codes: in each 64 values, byte i holds value i in its low nibble and value 32 + i in its
               high nibble; then (scale, minimum) as float16 pairs, one a group. value = scale * code + minimum
    rows_q8    Kp unsigned codes; then one float16 scale a group. value = scale * (code - 128)
    rows_bf16  Kp bfloat16
    columns    a matrix by its columns: of every column the codes over the outputs, without scales (bfloat16 values for
               bf16). down_proj lies so, a neuron's column being its part. A refined token reads the columns of chosen
               inputs of gate_proj and up_proj, where all others read rows, so an image holds these both ways
    column_scales  groups run along a row, so 32 columns share one scale per output: for
               each group Op float16 scales, and for q4 Op float16 minimums, Op being the outputs padded as K is
    coded_scales   the same of q4 as int8 multiples of the output's unit: half of the bytes, which are read whichever of
               the 32 columns are. Off by up to a 254th of the output's largest scale, or minimum
    scale_units    Op float16 units of the scales, then Op of the minimums

Every row and column is padded to a multiple of 8 bytes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["q4", "q8", "bf16"]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Codes = npt.NDArray[Any]  # uint8, or uint16 for bfloat16 bits
_LARGEST_SCALE_CODE = 127
GROUP, CHUNK = 32, 64
Q8_ZERO = 128
_ROW_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix in one of the storage kinds, not packed yet.

    codes: (rows, cols) uint8, or bfloat16 bits as uint16; scale, minimum: (rows, ceil(cols / 32)), None where the kind
    has none.
    """

    kind: Kind
    codes: Codes
    scale: Halves | None = None
    minimum: Halves | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.codes.shape
        return rows, cols

    def decode(self) -> Floats:
        """The values the kernels compute with, (rows, cols)."""
        if self.scale is None:
            return (self.codes.astype(np.uint32) << 16).view(np.float32)
        cols = self.shape[1]
        scale = np.repeat(self.scale.astype(np.float32), GROUP, axis=1)[:, :cols]
        if self.minimum is None:
            return scale * (self.codes.astype(np.float32) - Q8_ZERO)
        values: Floats = scale * self.codes.astype(np.float32)
        return values + np.repeat(self.minimum.astype(np.float32), GROUP, axis=1)[:, :cols]

    def take_rows(self, order: npt.NDArray[np.intp]) -> "Blocks":
        """The same matrix with its rows in another order; groups run along a row, so they move with it."""
        return Blocks(
            self.kind,
            self.codes[order],
            None if self.scale is None else self.scale[order],
            None if self.minimum is None else self.minimum[order],
        )


def stack(parts: list[Blocks]) -> Blocks:
    """Matrices of one kind and width, rows after rows."""
    if len({part.kind for part in parts}) != 1:
        raise ValueError(f"cannot stack {[part.kind for part in parts]}")
    scales = [part.scale for part in parts if part.scale is not None]
    minimums = [part.minimum for part in parts if part.minimum is not None]
    return Blocks(
        parts[0].kind,
        np.concatenate([part.codes for part in parts]),
        np.concatenate(scales) if scales else None,
        np.concatenate(minimums) if minimums else None,
    )


def pad_rows(blocks: Blocks, num_rows: int) -> Blocks:
    """With rows of zeros below, so that there are `num_rows`."""

    def wide(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.pad(plane, ((0, num_rows - len(plane)), (0, 0)))

    scale, minimum = (None if plane is None else wide(plane) for plane in (blocks.scale, blocks.minimum))
    return Blocks(blocks.kind, wide(blocks.codes), scale, minimum)


def padded(length: int, multiple: int = CHUNK) -> int:
    """The length rounded up."""
    return -(-length // multiple) * multiple


def row_bytes(kind: Kind, cols: int) -> int:
    """Bytes of one packed row."""
    groups = padded(cols) // GROUP
    scales = {"q4": 4 * groups, "q8": 2 * groups, "bf16": 0}[kind]
    return padded(_codes_bytes(kind, cols) + scales, _ROW_ALIGNMENT)


def _codes_bytes(kind: Kind, cols: int) -> int:
    return {"q4": padded(cols) // 2, "q8": padded(cols), "bf16": 2 * padded(cols)}[kind]


def pack_rows(blocks: Blocks) -> Bytes:
    """(rows, row_bytes)."""
    parts = [_pack_codes(blocks.codes, blocks.kind)]
    scales = [scale for scale in (blocks.scale, blocks.minimum) if scale is not None]
    if scales:
        groups = padded(blocks.shape[1]) // GROUP
        parts.append(np.stack([_pad_columns(scale, groups) for scale in scales], axis=2).reshape(len(parts[0]), -1))
    return _beside(parts, row_bytes(blocks.kind, blocks.shape[1]))


def unpack_rows(packed: Bytes, kind: Kind, cols: int) -> Blocks:
    """Inverse of `pack_rows`."""
    codes = _unpack_codes(packed, kind, cols)
    if kind == "bf16":
        return Blocks(kind, codes)
    start, groups, num_scales = _codes_bytes(kind, cols), padded(cols) // GROUP, 2 if kind == "q4" else 1
    scales = np.ascontiguousarray(packed[:, start : start + 2 * num_scales * groups]).view(np.float16)
    planes = scales.reshape(len(packed), groups, num_scales)[:, : padded(cols, GROUP) // GROUP]
    return Blocks(kind, codes, planes[..., 0], planes[..., 1] if kind == "q4" else None)


def pack_columns(blocks: Blocks) -> Bytes:
    """(columns, bytes) of a matrix (rows, columns), codes only."""
    return _beside([_pack_codes(blocks.codes.T, blocks.kind)], _codes_bytes(blocks.kind, blocks.shape[0]))


def unpack_columns(packed: Bytes, scales: Bytes | None, kind: Kind, num_outputs: int) -> Blocks:
    """Inverse of `pack_columns` and `pack_column_scales`."""
    codes = np.ascontiguousarray(_unpack_codes(packed, kind, num_outputs).T)
    if scales is None:
        return Blocks(kind, codes)
    num_groups = padded(len(packed), GROUP) // GROUP
    planes = scales.view(np.float16).reshape(num_groups, -1, padded(num_outputs))[..., :num_outputs]
    columns = np.ascontiguousarray(planes.transpose(1, 2, 0))  # (scale or minimum, outputs, groups)
    return Blocks(kind, codes, columns[0], columns[1] if kind == "q4" else None)


def pack_column_scales(blocks: Blocks) -> Bytes:
    """(groups of 32 columns, bytes): the scales of all outputs, then for q4 their minimums."""
    planes = [plane for plane in (blocks.scale, blocks.minimum) if plane is not None]
    width = padded(blocks.shape[0])
    return _beside([_pad_columns(plane.T, width) for plane in planes], 2 * width * len(planes))


def code_column_scales(blocks: Blocks) -> tuple[Bytes, Bytes]:
    """Of a q4 matrix what `pack_column_scales` gives as codes, (groups of 32 columns, bytes), and units, (1, bytes)."""
    planes = pack_column_scales(blocks).view(np.float16).astype(np.float32)
    units = np.abs(planes).max(axis=0) / _LARGEST_SCALE_CODE
    stored = units.astype(np.float16)
    # rounded up, or the largest scale would need a larger code
    stored = np.where(stored < units, np.nextafter(stored, np.float16(np.inf)), stored)
    multiples = np.divide(planes, stored.astype(np.float32), out=np.zeros_like(planes), where=stored > 0)
    return np.rint(multiples).astype(np.int8).view(np.uint8), stored[None].view(np.uint8)


def decode_column_scales(codes: Bytes, units: Bytes) -> Floats:
    """What the kernels make of `code_column_scales`, (groups of 32 columns, scales of all outputs, then minimums)."""
    scales: Floats = codes.view(np.int8).astype(np.float32) * units.view(np.float16).astype(np.float32)
    return scales


def _pack_codes(codes: Codes, kind: Kind) -> npt.NDArray[Any]:
    wide = _pad_columns(codes, padded(codes.shape[1]))
    if kind != "q4":
        return wide
    halves = wide.reshape(len(wide), -1, 2, GROUP)
    joined: Bytes = (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(wide), -1)
    return joined


def _unpack_codes(packed: Bytes, kind: Kind, cols: int) -> Codes:
    raw = np.ascontiguousarray(packed[:, : _codes_bytes(kind, cols)])
    if kind == "bf16":
        return raw.view(np.uint16)[:, :cols]
    if kind == "q8":
        return raw[:, :cols]
    halves = raw.reshape(len(raw), -1, GROUP)
    return np.stack([halves & 15, halves >> 4], axis=2).reshape(len(raw), -1)[:, :cols]


def _pad_columns(matrix: npt.NDArray[Any], cols: int) -> npt.NDArray[Any]:
    if matrix.shape[1] == cols:
        return np.ascontiguousarray(matrix)
    wide = np.zeros((len(matrix), cols), matrix.dtype)
    wide[:, : matrix.shape[1]] = matrix
    return wide


def _beside(parts: list[npt.NDArray[Any]], num_bytes: int) -> Bytes:
    """The rows' bytes one after the other, zero-padded to `num_bytes`."""
    rows = np.zeros((len(parts[0]), num_bytes), np.uint8)
    position = 0
    for part in parts:
        raw = np.ascontiguousarray(part).view(np.uint8)
        rows[:, position : position + raw.shape[1]] = raw
        position += raw.shape[1]
    return rows
