"""Numbers that say what is in an artifact: how concentrated importance is, and how far two rankings agree."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.ranking import ranks, share_within_top_k, top_k

TOP_SHARES = (0.1, 0.25, 0.5)


def top_share(values: FloatArray, share: float) -> npt.NDArray[np.float64]:
    """Part of each layer's total that its best `share` of neurons holds, (num_layers,); values (num_layers, m) >= 0.

    A flat layer gives `share` itself, a layer of few important neurons a number near 1.
    """
    ordered = -np.sort(-values.astype(np.float64), axis=1)
    kept = max(round(share * values.shape[1]), 1)
    total = ordered.sum(axis=1)
    held: npt.NDArray[np.float64] = np.divide(
        ordered[:, :kept].sum(axis=1), total, out=np.zeros_like(total), where=total > 0
    )
    return held


def spectra(values: FloatArray) -> FloatArray:
    """Each layer's values by falling importance, divided by the largest, (num_layers, m)."""
    ordered = -np.sort(-values, axis=1)
    largest = ordered[:, :1]
    result: FloatArray = np.divide(ordered, largest, out=np.zeros_like(ordered), where=largest > 0)
    return result


def overlap(first: FloatArray, second: FloatArray, density: float) -> list[float]:
    """Per layer, the share of the best `density` neurons of `first` that are also among those of `second`.

    Two independent rankings agree on a share `density`.
    """
    budget = max(round(density * first.shape[1]), 1)
    return [_layer_overlap(a, b, budget) for a, b in zip(first, second, strict=True)]


def _layer_overlap(first: FloatArray, second: FloatArray, budget: int) -> float:
    best = top_k(ranks(first[np.newaxis]), [budget])
    return share_within_top_k(best, ranks(second[np.newaxis]))


def bar(value: float, *, width: int = 9, full: float = 1.0) -> str:
    """A horizontal bar in eighths of a character; `full` fills it."""
    eighths = round(max(min(value / full, 1.0), 0.0) * width * 8) if full > 0 else 0
    partial = " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return ("█" * (eighths // 8) + partial).ljust(width)


def mean(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Arithmetic mean of a non-empty sequence."""
    return float(np.mean(values))
