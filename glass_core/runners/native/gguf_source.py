"""The weights of a GGUF file for an image: its blocks as they are, where an image can hold them."""

from collections.abc import Mapping

import gguf
import numpy as np

from glass_core.checkpoint.gguf_file import GgufFile
from glass_core.checkpoint.gguf_weights import gguf_name, hf_values, interleaved_heads, split_halves
from glass_core.models.spec import ModelSpec
from glass_core.runners.native.packing import GROUP, Blocks, Floats, Kind

_BLOCK_KINDS: Mapping[str, Kind] = {
    "Q4_0": "q4",
    "Q4_1": "q4",
    "Q5_0": "q8",
    "Q8_0": "q8",
    "BF16": "bf16",
}


class GgufSource:
    """A GGUF file. Q4_0, Q4_1, Q8_0 and BF16 tensors are taken as they are, Q5_0 as 8 bits."""

    def __init__(self, file: GgufFile, spec: ModelSpec) -> None:
        self.spec = spec
        self._file = file

    def stored_type(self, name: str) -> str:
        return self._file.tensors[gguf_name(name)].type_name

    def values(self, name: str) -> Floats:
        return hf_values(self._file, self.spec, name)

    def exact(self, name: str, kind: Kind) -> Blocks | None:
        if _BLOCK_KINDS.get(self.stored_type(name)) != kind:
            return None
        blocks = _read_blocks(self._file, gguf_name(name))
        heads = interleaved_heads(self.spec, name)
        if blocks is None or heads is None:
            return blocks
        rows = np.arange(blocks.shape[0], dtype=np.float32)  # exact: a projection has far fewer than 2^24 rows
        return blocks.take_rows(split_halves(rows, heads).astype(np.intp))


def _read_blocks(file: GgufFile, name: str) -> Blocks | None:
    """A block-quantized matrix as it is stored; None when a minimum would not fit float16."""
    tensor = file.tensors[name]
    raw = np.frombuffer(file.content, np.uint8, tensor.num_bytes, tensor.start)
    if tensor.type_name == "BF16":
        return Blocks("bf16", raw.view("<u2").astype(np.uint16).reshape(tensor.shape))
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type_name]]
    blocks = raw.reshape(-1, block_bytes)
    num_scales = 2 if tensor.type_name == "Q4_1" else 1
    scales = np.ascontiguousarray(blocks[:, : 2 * num_scales]).view("<f2").astype(np.float16)
    scales = scales.reshape(tensor.shape[0], -1, num_scales)
    codes = blocks[:, 2 * num_scales :]
    if tensor.type_name == "Q8_0":
        # two's complement to offset binary: q + 128 flips the top bit
        return Blocks("q8", (codes ^ 0x80).reshape(tensor.shape), scales[..., 0])
    if tensor.type_name == "Q5_0":
        codes, high = codes[:, 4:], np.unpackbits(codes[:, :4], axis=1, bitorder="little") << 4
        nibbles = np.concatenate([codes & 15, codes >> 4], axis=1) | high
        # scale * (code - 16), as offset binary code + 112
        return Blocks("q8", (nibbles + 112).astype(np.uint8).reshape(tensor.shape), scales[..., 0])
    nibbles = np.concatenate([codes & 15, codes >> 4], axis=1).reshape(-1, GROUP).reshape(tensor.shape)
    if tensor.type_name == "Q4_1":
        return Blocks("q4", nibbles, scales[..., 0], scales[..., 1])
    # Q4_0 is scale * (code - 8): the minimum is -8 * scale, a change of the exponent only
    with np.errstate(over="ignore"):
        minimum = scales[..., 0] * np.float16(-8)
    return Blocks("q4", nibbles, scales[..., 0], minimum) if np.isfinite(minimum).all() else None
