"""LocalStatistics: what a prompt's own neurons did, as sums over tokens, so chunks add up to the whole.

For token t with intermediate activation z_t (the input of down_proj) and zhat_t = z_t / ||z_t||_2:

    l1:  a[j] = (1/T) * sum_t |zhat_t[j]|            GLASS's default
    l2:  a[j] = sqrt( sum_t zhat_t[j]^2 )            GRIFFIN (arXiv 2404.01365), exact

An all-zero z_t contributes zero, never NaN; no epsilon is added to the norm, so rescaling z changes nothing, however
small it is. Non-finite activations stay visible as NaN and are refused when they are ranked.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LocalStatistics:
    """Additive sums over `num_tokens` tokens; arrays are (num_layers, intermediate_size) float32."""

    sum_abs: FloatArray
    sum_squares: FloatArray
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """What its arrays take."""
        return self.sum_abs.nbytes + self.sum_squares.nbytes

    @classmethod
    def zeros(cls, num_layers: int, intermediate_size: int) -> "LocalStatistics":
        """Statistics of no tokens: the neutral element of addition."""
        shape = (num_layers, intermediate_size)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0)

    @classmethod
    def from_activations(cls, z: npt.NDArray[np.floating[Any]]) -> "LocalStatistics":
        """Statistics of activations z (num_layers, num_tokens, intermediate_size): the reference for runners.

        Computed in float64 and scaled by each token's largest entry first, so that no square over- or underflows.
        """
        if z.ndim != 3:
            raise ValueError(f"expected activations (num_layers, num_tokens, intermediate_size), got shape {z.shape}")
        magnitude = np.abs(z.astype(np.float64))
        largest = magnitude.max(axis=2, keepdims=True)
        with np.errstate(invalid="ignore"):  # inf / inf: the NaN is meant to stay
            scaled = magnitude / np.where(largest == 0, 1.0, largest)
        norm = np.sqrt(np.square(scaled).sum(axis=2, keepdims=True))
        normalized = scaled / np.where(norm == 0, 1.0, norm)
        sum_abs = normalized.sum(axis=1).astype(np.float32)
        sum_squares = np.square(normalized).sum(axis=1).astype(np.float32)
        return cls(sum_abs, sum_squares, z.shape[1])

    def __add__(self, other: "LocalStatistics") -> "LocalStatistics":
        if self.sum_abs.shape != other.sum_abs.shape:  # numpy would broadcast one layer over all
            raise ValueError(f"cannot add statistics of shapes {self.sum_abs.shape} and {other.sum_abs.shape}")
        return LocalStatistics(
            self.sum_abs + other.sum_abs,
            self.sum_squares + other.sum_squares,
            self.num_tokens + other.num_tokens,
        )

    def l1(self) -> FloatArray:
        """Mean normalized magnitude, (num_layers, intermediate_size)."""
        return self.sum_abs / np.float32(max(self.num_tokens, 1))

    def l2(self) -> FloatArray:
        """GRIFFIN's statistic, (num_layers, intermediate_size)."""
        return np.sqrt(self.sum_squares)
