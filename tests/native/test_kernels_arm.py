"""The ARM kernels, built by the cross compiler and run by the emulator, against the portable ones and each other."""

import shutil
from pathlib import Path

import pytest

from tests.native.compiled import KERNELS, build_program, run_program

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64")


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or not EMULATOR, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")
def test_neon_kernels_agree_with_portable_and_each_other(tmp_path: Path) -> None:
    sources = {
        f"{KERNELS}/kernels_neon_dotprod.cpp": ["-march=armv8.2-a+dotprod"],
        f"{KERNELS}/kernels_neon_i8mm.cpp": ["-march=armv8.2-a+dotprod+i8mm"],
        f"{KERNELS}/kernels_portable.cpp": [],
        f"{KERNELS}/cpu_features.cpp": [],
        f"{KERNELS}/check_kernels.cpp": [],
        f"{KERNELS}/find_kernels.cpp": ["-DGLASS_HAVE_NEON_DOTPROD", "-DGLASS_HAVE_NEON_I8MM"],
        "tests/native/kernels_selftest.cpp": [],
    }
    program = build_program(str(COMPILER), sources, tmp_path, "-static")
    # the first processor has both extensions, the second the dot product only
    everything = run_program(str(EMULATOR), "-cpu", "max", str(program))
    assert everything == ["neon_i8mm ok", "neon_dotprod ok", "portable ok"]
    assert run_program(str(EMULATOR), "-cpu", "neoverse-n1", str(program)) == ["neon_dotprod ok", "portable ok"]
