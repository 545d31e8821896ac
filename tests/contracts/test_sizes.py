"""Files and functions stay small enough to read: the limits of ARCHITECTURE.md."""

import ast
from pathlib import Path
from statistics import median

import pytest

from tests.contracts.repository import ROOT, functions, sources

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 10


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module needs a docstring"


def test_functions_are_short() -> None:
    lengths = {f"{name_of(path)}: {name}": length for path in sources() for name, length in functions(path)}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}
    assert median(lengths.values()) <= MAX_MEDIAN_FUNCTION_LINES


def test_no_grab_bag_modules() -> None:
    assert [name_of(path) for path in sources() if path.stem in {"utils", "helpers", "misc", "common_utils"}] == []
