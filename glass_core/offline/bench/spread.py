"""Summaries of repeated measurements."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of repeats."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError (statistics.StatisticsError) without values."""
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the repeats' own ratios: what is left when both sides of a repeat share the machine's mood."""
    return spread([first / second for first, second in zip(numerators, denominators, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value with at least `percent` of all values at or below it (nearest rank: always a value measured).

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("no percentile of no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p90, p99 and mean; all None without values."""
    if not values:
        return {**{f"p{percent}": None for percent in PERCENTILES}, "mean": None}
    found: dict[str, float | None] = {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return {**found, "mean": statistics.fmean(values)}
