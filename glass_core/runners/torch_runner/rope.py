"""Rotary position embedding (arXiv 2104.09864), unscaled or scaled as linear, dynamic and llama3, as HF computes it.

`dynamic` (NTK-aware) changes the frequencies with the length of the sequence once it passes the trained length. HF
takes the length of the call (largest position + 1, over the whole batch) and leaves keys already cached as they were.
Here every token carries its own length, so batch-mates never matter: the runner passes max(prompt length, position +
1), which is what HF's `generate` applies to a prompt run whole and then decoded token by token, and which neither
chunking nor recomputation changes.
"""

import math

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec, RopeSpec


class RotaryEmbedding:
    """Cosine and sine tables of one of a model's rotary embeddings."""

    def __init__(self, spec: ModelSpec, rope: RopeSpec, device: str) -> None:
        self._rope = rope
        self._head_dim = spec.head_dim
        self._trained_length = rope.original_max_position or spec.max_position_embeddings
        self._inverse_frequencies = inverse_frequencies(rope, spec.head_dim, self._trained_length).to(device)

    def tables(self, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, each (n, 1, head_dim) to broadcast over heads, computed in float32.

        `positions` (n,); `lengths` (n,): the sequence length each token is rotated for, None = the largest position + 1
        for all. Only `dynamic` looks at them.
        """
        frequencies = self._inverse_frequencies
        if self._rope.kind == "dynamic":
            frequencies = self._dynamic_frequencies(positions.max() + 1 if lengths is None else lengths)
        angles = positions[:, None].float() * frequencies
        both_halves = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return both_halves.cos().to(dtype), both_halves.sin().to(dtype)

    def _dynamic_frequencies(self, lengths: Tensor) -> Tensor:
        """(n, head_dim/2), or (1, head_dim/2) for one length: theta grows with the length past the trained one."""
        clamped = lengths.double().clamp(min=self._trained_length).reshape(-1, 1)
        ratio = self._rope.factor * clamped / self._trained_length - (self._rope.factor - 1)
        theta = self._rope.theta * ratio ** (self._head_dim / (self._head_dim - 2))
        exponents = _exponents(self._head_dim).to(theta.device)
        return 1.0 / theta.float() ** exponents


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys `x` (n, heads, head_dim); pairs are (i, i + head_dim/2), HF's layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def inverse_frequencies(rope: RopeSpec, head_dim: int, trained_length: int) -> Tensor:
    """(head_dim/2,) float32 for lengths up to the trained one."""
    base = 1.0 / rope.theta ** _exponents(head_dim)
    if rope.kind == "linear":
        return base / rope.factor
    if rope.kind == "llama3":
        return _llama3(base, rope, trained_length)
    return base


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim


def _llama3(base: Tensor, rope: RopeSpec, trained_length: int) -> Tensor:
    """Llama 3.1: keep high frequencies, divide low ones by the factor, interpolate between."""
    wavelength = 2 * math.pi / base
    smooth = (trained_length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    share = smooth.clamp(0.0, 1.0)
    return (1 - share) * base / rope.factor + share * base
