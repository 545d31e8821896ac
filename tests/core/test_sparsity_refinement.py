"""Refinement: what a refined plan may hold, and what it promises."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glass_core.errors import ConfigurationError
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement


def refinement(**changes: Any) -> Refinement:
    ones, zeros = np.ones((2, 5), np.float32), np.zeros(2, np.float32)
    return replace(Refinement(ones, ones, zeros, zeros, reads=0.75), **changes)


def test_a_refined_plan_promises_what_its_refinement_reads() -> None:
    everything = (np.arange(5, dtype=np.int32),) * 2
    plan = SparsityPlan("a_glass", "uniform", 0.5, 0.25, 5, everything)
    assert plan.sparsity == 0.0
    assert replace(plan, refinement=refinement()).sparsity == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": 0.0}, r"reads must lie in \(0, 1\], got 0"),
        ({"reads": 1.5}, "reads must lie"),
        ({"reads": float("nan")}, "reads must lie"),
        ({"up_weights": np.ones(5, np.float32)}, r"up_weights must be \(layers, neurons\)"),
        ({"up_weights": np.ones((2, 5))}, "up_weights must be contiguous float32"),
        ({"down_norms": np.ones((2, 4), np.float32)}, r"down_norms .* of shape \(2, 5\), got float32 of \(2, 4\)"),
        ({"down_norms": np.ones((5, 2), np.float32).T}, "down_norms must be contiguous"),
        ({"up_thresholds": np.zeros(3, np.float32)}, "up_thresholds"),
        ({"down_thresholds": np.full(2, np.nan, np.float32)}, "down_thresholds must be finite"),
        ({"up_weights": np.full((2, 5), -1.0, np.float32)}, "up_weights must be finite and not negative"),
    ],
)
def test_impossible_refinements_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        refinement(**changes)
