"""The package on a machine without a C++ compiler: it installs all the same, without the extension, and says so."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.contracts.repository import ROOT, tracked_files

PROGRAMS = ("sh", "env", "uname", "git", "cmake", "ninja")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the repository as git has it: no build leftovers."""
    if not tracked_files():
        pytest.skip("not a git checkout")
    for path in tracked_files():
        target = tmp_path / "sources" / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path / "sources"


@pytest.fixture
def without_compiler(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has a few harmless programs only."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        if (found := shutil.which(name)) is not None:
            (programs / name).symlink_to(found)
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "CMAKE_ARGS")}
    return {**kept, "PATH": str(programs)}


def test_wheel_without_a_compiler(sources: Path, without_compiler: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "-w", str(tmp_path), "."],
        cwd=sources,
        env=without_compiler,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "glass: the native runner was not built" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "glass_core/runners/native/image.py" in names
    assert [name for name in names if name.endswith((".so", ".cpp", ".h"))] == []
