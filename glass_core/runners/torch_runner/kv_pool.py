"""The KV pool: keys and values of all sequences in blocks of fixed size, one allocation for the life of the runner.

Which block belongs to whom is the engine's business; the pool only turns block tables into slots (block *
block_size + offset), writes and reads. The memory is not touched before a block is first used.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glass_core.config import CacheConfig
from glass_core.errors import ConfigurationError
from glass_core.models.spec import ModelSpec


def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one block takes: keys and values of block_size positions in every layer."""
    return 2 * spec.num_layers * block_size * spec.kv_size * dtype.itemsize


class KVPool:
    """Keys and values, each (num_layers, num_blocks * block_size, num_kv_heads, head_dim)."""

    def __init__(self, spec: ModelSpec, config: CacheConfig, dtype: torch.dtype, device: str) -> None:
        """Raises ConfigurationError when not even one block fits the budget."""
        size = block_bytes(spec, config.block_size, dtype)
        self.num_blocks = config.kv_cache_bytes // size
        self.block_size = config.block_size
        if self.num_blocks < 1:
            raise ConfigurationError(
                f"kv_cache_bytes ({config.kv_cache_bytes}) is too small: one block of {config.block_size} tokens "
                f"takes {size} bytes"
            )
        shape = (spec.num_layers, self.num_blocks * self.block_size, spec.num_kv_heads, spec.head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    def slots(self, block_table: Sequence[int], num_positions: int) -> Tensor:
        """Slots of positions 0 … num_positions - 1, (num_positions,) int64."""
        num_blocks = -(-num_positions // self.block_size)
        blocks = np.asarray(block_table[:num_blocks], dtype=np.int64)
        slots = (blocks[:, None] * self.block_size + np.arange(self.block_size)).reshape(-1)[:num_positions]
        return torch.from_numpy(slots).to(self._keys.device)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v (n, kv_heads, head_dim) at slots (n,)."""
        self._keys[layer].index_copy_(0, slots, k)
        self._values[layer].index_copy_(0, slots, v)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at slots (C,), each (C, kv_heads, head_dim), copied."""
        return self._keys[layer].index_select(0, slots), self._values[layer].index_select(0, slots)
