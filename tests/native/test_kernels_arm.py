"""The ARM kernels, built by the cross compiler and run by the emulator, against the portable ones."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "glass_core/runners/native/csrc"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64")


def build(tmp_path: Path, name: str, flags: list[str]) -> Path:
    target = tmp_path / f"{Path(name).stem}.o"
    base = [str(COMPILER), "-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    subprocess.run([*base, *flags, "-c", str(ROOT / name), "-o", str(target)], check=True, timeout=120)
    return target


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or not EMULATOR, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")
def test_neon_kernels_agree_with_portable(tmp_path: Path) -> None:
    folder = "glass_core/runners/native/csrc/kernels"
    objects = [
        build(tmp_path, f"{folder}/kernels_neon_dotprod.cpp", ["-march=armv8.2-a+dotprod"]),
        build(tmp_path, f"{folder}/kernels_portable.cpp", []),
        build(tmp_path, f"{folder}/find_kernels.cpp", ["-DGLASS_HAVE_NEON_DOTPROD"]),
        build(tmp_path, "tests/native/kernels_selftest.cpp", []),
    ]
    program = tmp_path / "selftest"
    subprocess.run([str(COMPILER), "-static", *map(str, objects), "-o", str(program)], check=True, timeout=120)
    done = subprocess.run([str(EMULATOR), str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["neon_dotprod ok", "portable ok", ""])
