"""Refinement: what a refined plan may hold, and what it promises."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glass_core.errors import ConfigurationError
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import STAGES, Refinement, ScoreWeights


def weights(**changes: Any) -> ScoreWeights:
    return replace(ScoreWeights(np.ones((2, 3), np.float32), np.ones((2, 5), np.float32)), **changes)


def refinement(**changes: Any) -> Refinement:
    return replace(Refinement(weights(), np.zeros((len(STAGES), 2), np.float32), reads=0.75), **changes)


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
        ({"thresholds": np.zeros((2, 3), np.float32)}, r"thresholds .* of shape \(2, 2\), got float32 of \(2, 3\)"),
        ({"thresholds": np.zeros((3, 2), np.float32)}, r"thresholds .* of shape \(2, 2\)"),
        ({"thresholds": np.zeros((2, 2), np.float32).T}, "thresholds must be contiguous"),
        ({"thresholds": np.full((2, 2), np.nan, np.float32)}, "thresholds must be finite"),
    ],
)
def test_impossible_refinements_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        refinement(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down": np.ones(2, np.float32)}, r"down must be \(layers, size\), got \(2,\)"),
        ({"inputs": np.ones((3, 3), np.float32)}, r"inputs must be \(layers, size\), got \(3, 3\)"),
        ({"down": np.ones((3, 5), np.float32)}, r"inputs must be \(layers, size\), got \(2, 3\)"),
        ({"down": np.ones((2, 5))}, "down must be contiguous float32"),
        ({"down": np.ones((5, 2), np.float32).T}, "down must be contiguous"),
        ({"inputs": np.full((2, 3), np.inf, np.float32)}, "inputs must be finite"),
        ({"down": np.full((2, 5), -1.0, np.float32)}, "down must be finite and not negative"),
    ],
)
def test_impossible_weights_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"score weights: {message}"):
        weights(**changes)
