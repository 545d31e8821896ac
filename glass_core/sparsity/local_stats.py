"""LocalStatistics: what a prompt's own neurons did, as sums over tokens, so chunks add up to the whole.

For token t with intermediate activation z_t (the input of down_proj) and zhat_t = z_t / ||z_t||_2:

    l1:  a[j] = (1/T) * sum_t |zhat_t[j]|            GLASS's default
    l2:  a[j] = sqrt( sum_t zhat_t[j]^2 )            GRIFFIN (arXiv 2404.01365), exact

and, for requests whose refinement looks at the prompt, of the gate g_t after its activation:

    E|g|:  a[j] = 1/(T-1) * sum over t >= FIRST_GATE of |g_t[j]|

An all-zero z_t contributes zero, never NaN; no epsilon is added to the norm, so rescaling z changes nothing, however
small it is. Non-finite activations stay visible as NaN and are refused when they are ranked.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# Gates count from this position on, as in the artifact's mean_abs_gate: the first token's massive activations
# (arXiv 2402.17762) would be all that a plain mean sees. Normalized z needs no such rule: its tokens weigh the same.
FIRST_GATE = 1


@dataclass(frozen=True, slots=True, eq=False)
class LocalStatistics:
    """Additive sums over `num_tokens` tokens; arrays are (num_layers, intermediate_size) float32.

    `sum_gates`: of |g|, the gate after its activation, over those of the tokens at positions >= FIRST_GATE; None where
    gates were not collected.
    """

    sum_abs: FloatArray
    sum_squares: FloatArray
    num_tokens: int
    sum_gates: FloatArray | None = None

    @property
    def num_bytes(self) -> int:
        """What its arrays take."""
        return self.sum_abs.nbytes + self.sum_squares.nbytes + (0 if self.sum_gates is None else self.sum_gates.nbytes)

    @classmethod
    def zeros(cls, num_layers: int, intermediate_size: int, *, gates: bool = False) -> "LocalStatistics":
        """Statistics of no tokens: the neutral element of addition, with or without sums of gates."""
        shape = (num_layers, intermediate_size)
        sum_gates = np.zeros(shape, np.float32) if gates else None
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0, sum_gates)

    @classmethod
    def from_activations(
        cls, z: npt.NDArray[np.floating[Any]], gates: npt.NDArray[np.floating[Any]] | None = None, *, start: int = 0
    ) -> "LocalStatistics":
        """Statistics of activations `z` and `gates`, (num_layers, num_tokens, intermediate_size) both, of tokens at
        positions `start` and on: the reference for runners.

        Computed in float64 and scaled by each token's largest entry first, so that no square over- or underflows.
        """
        if z.ndim != 3 or (gates is not None and gates.shape != z.shape):
            shapes = z.shape if gates is None else (z.shape, gates.shape)
            raise ValueError(f"expected activations (num_layers, num_tokens, intermediate_size), got shape {shapes}")
        magnitude = np.abs(z.astype(np.float64))
        largest = magnitude.max(axis=2, keepdims=True)
        with np.errstate(invalid="ignore"):  # inf / inf: the NaN is meant to stay
            scaled = magnitude / np.where(largest == 0, 1.0, largest)
        norm = np.sqrt(np.square(scaled).sum(axis=2, keepdims=True))
        normalized = scaled / np.where(norm == 0, 1.0, norm)
        sum_abs = normalized.sum(axis=1).astype(np.float32)
        sum_squares = np.square(normalized).sum(axis=1).astype(np.float32)
        return cls(sum_abs, sum_squares, z.shape[1], None if gates is None else _sum_gates(gates, start))

    def __add__(self, other: "LocalStatistics") -> "LocalStatistics":
        if self.sum_abs.shape != other.sum_abs.shape:  # numpy would broadcast one layer over all
            raise ValueError(f"cannot add statistics of shapes {self.sum_abs.shape} and {other.sum_abs.shape}")
        if (self.sum_gates is None) != (other.sum_gates is None):
            raise ValueError("cannot add statistics with gates and statistics without")
        gates = None if self.sum_gates is None or other.sum_gates is None else self.sum_gates + other.sum_gates
        return LocalStatistics(
            self.sum_abs + other.sum_abs,
            self.sum_squares + other.sum_squares,
            self.num_tokens + other.num_tokens,
            gates,
        )

    def l1(self) -> FloatArray:
        """Mean normalized magnitude, (num_layers, intermediate_size)."""
        return self.sum_abs / np.float32(max(self.num_tokens, 1))

    def l2(self) -> FloatArray:
        """GRIFFIN's statistic, (num_layers, intermediate_size)."""
        return np.sqrt(self.sum_squares)

    def mean_abs_gate(self) -> FloatArray | None:
        """E|g| of a whole prompt, (num_layers, intermediate_size); None where no gate was counted: they were not
        collected, or the prompt has one token."""
        num_counted = self.num_tokens - FIRST_GATE
        return None if self.sum_gates is None or num_counted < 1 else self.sum_gates / np.float32(num_counted)


def first_gate(start: int) -> int:
    """Which of the tokens at positions `start` and on is the first whose gate counts."""
    return max(FIRST_GATE - start, 0)


def _sum_gates(gates: npt.NDArray[np.floating[Any]], start: int) -> FloatArray:
    counted = np.abs(gates[:, first_gate(start) :].astype(np.float64))
    total: FloatArray = counted.sum(axis=1).astype(np.float32)
    return total
