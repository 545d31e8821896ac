"""The benchmark of a step's bare reads compiles and runs, with a row for every kind of token."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.native.compiled import build_program, run_program

COMPILER = shutil.which("g++")


@pytest.mark.skipif(not COMPILER, reason="needs g++")
def test_every_kind_of_token_is_read(tmp_path: Path) -> None:
    program = build_program(str(COMPILER), {"benchmarks/step_reads.cpp": ["-O2"]}, tmp_path, "-pthread")
    heading, *rows = (line.split() for line in run_program(str(program), "1"))
    assert heading[:2] == ["FFN", "reads"]
    assert Counter(row[0] for row in rows) == {"1.0": 1, "0.8": 4, "0.7": 4, "0.6": 4, "0.5": 4, "0.4": 4}
    megabytes, allowed, milliseconds, ratio = zip(*(map(float, row[1:5]) for row in rows), strict=True)
    assert list(megabytes) == sorted(megabytes, reverse=True)
    assert (allowed[0], ratio[0]) == (1.0, 1.0)
    assert min(milliseconds) > 0
