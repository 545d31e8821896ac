"""Reads an image back into float32 tensors under their canonical names: what the kernels compute with, for tests and
`glass doctor`; never used to serve."""

from collections.abc import Iterator

import numpy as np

from glass_core.runners.native.build_image import DOWN, FORMAT_KINDS, GATE_UP, ROWS, VECTORS
from glass_core.runners.native.image import ImageHeader, ImageTensor, map_payload
from glass_core.runners.native.packing import Bytes, Floats, Kind, unpack_columns, unpack_rows

_ROW_KINDS: dict[str, Kind] = {"rows_q4": "q4", "rows_q8": "q8", "rows_bf16": "bf16"}
_SCALES = ("column_scales", "coded_scales", "scale_units")
_TOP = {"embed_tokens": "embed_tokens.weight", "lm_head": "lm_head.weight", "norm": "norm.weight"}


def decode_image(header: ImageHeader) -> Iterator[tuple[str, Floats]]:
    """(canonical name, float32 tensor) of every tensor of the model, one image tensor at a time."""
    payload = map_payload(header)
    for name, tensor in header.tensors.items():
        if tensor.kind not in _SCALES and not name.endswith("inputs"):  # with their columns; gate and up once more
            yield from _decode(header, payload, name, tensor)


def _decode(header: ImageHeader, payload: Bytes, name: str, tensor: ImageTensor) -> Iterator[tuple[str, Floats]]:
    raw = _rows(payload, tensor)
    layer, part = name.rpartition(".")[0], name.rpartition(".")[2]
    prefix = f"{layer}." if layer else ""
    if tensor.kind == "columns":
        scales = header.tensors.get(f"{prefix}down_scales")
        planes = None if scales is None else _rows(payload, scales)
        yield prefix + DOWN, unpack_columns(raw, planes, FORMAT_KINDS[header.format], tensor.shape[1]).decode()
        return
    values = _values(raw, tensor)
    if not prefix:
        yield _TOP[name], _stored(header, name, values)
    elif part in ("qkv", "qkv_bias"):
        yield from _split_qkv(header, prefix, values, "weight" if part == "qkv" else "bias")
    elif part == "gate_up":
        yield from ((prefix + projection, values[first::2]) for first, projection in enumerate(GATE_UP))
    elif part in ROWS:
        yield prefix + ROWS[part][0], values
    else:
        yield prefix + VECTORS[part][0], _stored(header, part, values)


def _stored(header: ImageHeader, name: str, values: Floats) -> Floats:
    """The values as a checkpoint stores them: norms of an image have their offset added."""
    return values - np.float32(header.spec.norm_offset) if name.endswith("norm") else values


def _rows(payload: Bytes, tensor: ImageTensor) -> Bytes:
    return payload[tensor.offset : tensor.offset + tensor.num_bytes].reshape(-1, tensor.row_bytes)


def _values(raw: Bytes, tensor: ImageTensor) -> Floats:
    if tensor.kind == "f32":
        return raw.reshape(-1).view("<f4").astype(np.float32)
    return unpack_rows(raw, _ROW_KINDS[tensor.kind], tensor.shape[1]).decode()


def _split_qkv(header: ImageHeader, prefix: str, values: Floats, kind: str) -> Iterator[tuple[str, Floats]]:
    spec = header.spec
    bounds = [spec.q_size, spec.q_size + spec.kv_size]
    for name, part in zip("qkv", np.split(values, bounds), strict=True):
        yield f"{prefix}self_attn.{name}_proj.{kind}", part
