"""LocalStatistics: what a prompt's own neurons did, as sums over tokens, so chunks add up to the whole.

For token t with intermediate activation z_t (the input of down_proj) and zhat_t = z_t / ||z_t||_2:

    l1:  a[j] = (1/T) * sum_t |zhat_t[j]|            GLASS's default
    l2:  a[j] = sqrt( sum_t zhat_t[j]^2 )            GRIFFIN (arXiv 2404.01365), exact

An all-zero z_t contributes zero, never NaN.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LocalStatistics:
    """Additive sums over `num_tokens` tokens; arrays are (num_layers, intermediate_size) float32."""

    sum_abs: FloatArray
    sum_squares: FloatArray
    num_tokens: int

    def __add__(self, other: "LocalStatistics") -> "LocalStatistics":
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
