"""Where an image's weights come from: a checkpoint folder here, a GGUF file in `gguf_source.py`."""

from typing import Protocol

import numpy as np

from glass_core.checkpoint.mapped_file import map_file
from glass_core.checkpoint.prepared import PreparedCheckpoint
from glass_core.checkpoint.safetensors_file import TensorRef
from glass_core.models.spec import ModelSpec
from glass_core.runners.native import quantize
from glass_core.runners.native.packing import Blocks, Floats, Kind


class WeightSource(Protocol):
    """Tensors by canonical name."""

    spec: ModelSpec

    def stored_type(self, name: str) -> str:
        """How the source stores it, for people: Q4_1, F32, …"""
        ...

    def values(self, name: str) -> Floats:
        """The tensor as float32."""
        ...

    def exact(self, name: str, kind: Kind) -> Blocks | None:
        """The matrix in that kind if nothing is lost, else None."""
        ...


class CheckpointSource:
    """A folder with safetensors. Blocks are recovered where the values still lie on their grids."""

    def __init__(self, checkpoint: PreparedCheckpoint) -> None:
        self.spec = checkpoint.spec
        self._refs = checkpoint.tensors

    def stored_type(self, name: str) -> str:
        return self._refs[name].dtype

    def values(self, name: str) -> Floats:
        return read_values(self._refs[name])

    def exact(self, name: str, kind: Kind) -> Blocks | None:
        return quantize.exact(self.values(name), kind)


def read_values(ref: TensorRef) -> Floats:
    """A safetensors tensor of type F32, F16 or BF16 as float32."""
    content = map_file(ref.path)
    if ref.dtype == "BF16":
        bits = np.frombuffer(content, "<u2", ref.num_bytes // 2, ref.start)
        return (bits.astype(np.uint32) << 16).view(np.float32).reshape(ref.shape)
    item = {"F32": "<f4", "F16": "<f2"}[ref.dtype]
    raw = np.frombuffer(content, item, ref.num_bytes // np.dtype(item).itemsize, ref.start)
    return raw.astype(np.float32).reshape(ref.shape)
