"""The toy's benchmark: the methods ConicGrad is compared with are what they claim to be, and it prints and draws."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.offline.tune import toy
from glass_core.offline.tune.cone import Floats
from tests.contracts.repository import ROOT

BENCHMARK: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "conic_toy.py"))
C: float = BENCHMARK["C"]
cagrad: Callable[[Floats], Floats] = BENCHMARK["cagrad"]
upgrad: Callable[[Floats], Floats] = BENCHMARK["upgrad"]
GENERATORS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def random_jacobian(generator: np.random.Generator) -> Floats:
    jacobian: Floats = generator.normal(size=(2, 3)) * generator.uniform(0.05, 2, size=(2, 1))
    return jacobian


@given(GENERATORS)
def test_cagrad_is_the_best_for_the_worst_task_within_its_ball(generator: np.random.Generator) -> None:
    """Its definition: max over |d - g_0| <= c |g_0| of the smallest <g_i, d>."""
    jacobian = random_jacobian(generator)
    mean = jacobian.mean(axis=0)
    d = (cagrad((jacobian @ jacobian.T)[None]) @ jacobian)[0]
    radius = C * np.linalg.norm(mean)
    assert np.linalg.norm(d - mean) <= radius * (1 + 1e-6)
    offsets = generator.normal(size=(300, 3))
    rivals = mean + radius * offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    assert (jacobian @ d).min() >= (rivals @ jacobian.T).min(axis=1).max() - 1e-6


@pytest.mark.parametrize(("first", "second", "expected"), [(0.0, 0.0, 0.0), (1.0, -1.0, 0.0), (1.0, 3.0, 3.0)])
def test_cagrad_where_gradients_are_parallel(first: float, second: float, expected: float) -> None:
    jacobian = np.array([[first], [second]])
    d = cagrad((jacobian @ jacobian.T)[None])[0] @ jacobian
    np.testing.assert_allclose(d, [expected], atol=1e-12)


@given(GENERATORS)
def test_upgrad_conflicts_with_no_task(generator: np.random.Generator) -> None:
    jacobian = random_jacobian(generator)
    gram = jacobian @ jacobian.T
    coefficients = upgrad(gram[None])[0]
    gains = gram @ coefficients
    assert (gains >= -1.001e-4 * np.trace(gram) * coefficients - 1e-9).all()  # torchjd adds 1e-4 of the trace


def test_prints_a_row_per_method_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BENCHMARK["main"](["--num-steps", "20", "--plot", str(tmp_path / "toy.png")])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" |")[0] for row in rows[2:]] == ["| mean gradient", "| CAGrad", "| UPGrad", "| ConicGrad"]
    assert all(row.count("never") == len(toy.STARTS) for row in rows[2:])
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_copies_of_the_starts(capsys: pytest.CaptureFixture[str]) -> None:
    BENCHMARK["main"](["--num-steps", "50", "--copies", "2", "--c", "0.75"])
    rows = capsys.readouterr().out.splitlines()
    assert rows == [f"| {name} | 0 | 0 | 0 | 0 | 0 |" for name in ("mean gradient", "CAGrad", "ConicGrad")]
    assert BENCHMARK["_spread"](np.array([30, 10, 20])) == "3: 10, 20, 30"
