"""RoPE frequencies for the native step, numpy float32: unscaled, linear, llama3, and dynamic by each token's length.

The formulas are those of the torch runner (`torch_runner/rope.py` says where they come from).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glass_core.models.spec import ModelSpec, RopeSpec
from glass_core.runners.base import StepRow

Floats = npt.NDArray[np.float32]


class RopeFrequencies:
    """The frequencies that a step's tokens are rotated with."""

    def __init__(self, spec: ModelSpec) -> None:
        self._rope = spec.rope
        self._head_dim = spec.head_dim
        self._trained_length = spec.rope.original_max_position or spec.max_position_embeddings
        tables = [inverse_frequencies(rope, spec.head_dim, self._trained_length) for rope in spec.ropes]
        self._fixed = np.concatenate(tables).reshape(1, -1)

    def of(self, rows: Sequence[StepRow]) -> Floats:
        """(1, num_ropes * head_dim/2) when all tokens share them, else (tokens, num_ropes * head_dim/2)."""
        if self._rope.kind != "dynamic":
            return self._fixed
        lengths = np.concatenate([_lengths(row) for row in rows])
        return self._fixed if lengths.max() <= self._trained_length else self._dynamic(lengths)

    def _dynamic(self, lengths: npt.NDArray[np.int64]) -> Floats:
        """Theta grows with the length past the trained one (NTK-aware)."""
        clamped = np.maximum(lengths.astype(np.float64), self._trained_length)[:, None]
        ratio = self._rope.factor * clamped / self._trained_length - (self._rope.factor - 1)
        theta = self._rope.theta * ratio ** (self._head_dim / (self._head_dim - 2))
        frequencies: Floats = np.float32(1.0) / theta.astype(np.float32) ** _exponents(self._head_dim)
        return frequencies


def inverse_frequencies(rope: RopeSpec, head_dim: int, trained_length: int) -> Floats:
    """(head_dim/2,) for lengths up to the trained one."""
    base = (1.0 / np.float32(rope.theta) ** _exponents(head_dim)).astype(np.float32)
    if rope.kind == "linear":
        return base / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(base, rope, trained_length)
    return base


def _lengths(row: StepRow) -> npt.NDArray[np.int64]:
    """The sequence length each token of the row is rotated for."""
    end = row.start + len(row.token_ids)
    prompt_length = end if row.num_prompt_tokens is None else row.num_prompt_tokens
    return np.maximum(np.arange(row.start + 1, end + 1), prompt_length)


def _exponents(head_dim: int) -> Floats:
    return np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)


def _llama3(base: Floats, rope: RopeSpec, trained_length: int) -> Floats:
    """Keep high frequencies, divide low ones by the factor, interpolate between."""
    wavelength = 2 * math.pi / base
    smooth = (trained_length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    share = np.clip(smooth, 0.0, 1.0)
    return ((1 - share) * base / rope.factor + share * base).astype(np.float32)
