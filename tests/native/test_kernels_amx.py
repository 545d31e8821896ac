"""The AMX kernels with their tile instructions in software, against the AVX-512 kernels bit for bit.

The model follows Intel's pseudo-code and ends the program where the processor would fault.
"""

import platform
import shutil
from pathlib import Path

import pytest

from tests.native.compiled import AVX512_VNNI, KERNELS, build_program, run_program

native = pytest.importorskip("glass_core.runners.native._native", reason="the native extension is not built")
COMPILER = shutil.which("g++")
HAS_AVX512 = "avx512_vnni" in native.kernels.available_isas()


@pytest.mark.skipif(not COMPILER or not HAS_AVX512, reason="needs g++ and a processor with AVX-512 VNNI")
def test_amx_kernels_have_the_bits_of_avx512(tmp_path: Path) -> None:
    model = [*AVX512_VNNI, "-DGLASS_AMX_MODEL", f"-I{Path(__file__).parent}"]
    sources = {
        f"{KERNELS}/kernels_amx_int8.cpp": model,
        f"{KERNELS}/kernels_avx512_vnni.cpp": AVX512_VNNI,
        f"{KERNELS}/kernels_portable.cpp": [],
        f"{KERNELS}/check_kernels.cpp": [],
        f"{KERNELS}/find_kernels.cpp": ["-DGLASS_HAVE_AMX_INT8", "-DGLASS_HAVE_AVX512_VNNI"],
        "tests/native/modelled_features.cpp": [],
        "tests/native/kernels_selftest.cpp": [],
    }
    program = build_program(str(COMPILER), sources, tmp_path)
    assert run_program(str(program)) == ["amx_int8 ok", "avx512_vnni ok", "portable ok"]


@pytest.mark.skipif(not COMPILER or platform.machine() != "x86_64", reason="needs g++ on x86-64")
def test_kernels_that_fail_their_check_are_not_chosen(tmp_path: Path) -> None:
    sources = {
        f"{KERNELS}/kernels_portable.cpp": [],
        f"{KERNELS}/check_kernels.cpp": [],
        f"{KERNELS}/find_kernels.cpp": ["-DGLASS_HAVE_AVX2"],
        "tests/native/broken_kernels.cpp": [],
    }
    program = str(build_program(str(COMPILER), sources, tmp_path))
    assert run_program(program, "nothing") == ["avx2||0", "portable||0", "avx2", "avx2"]
    attention = [f"attend_span {error}" for error in ("far", "near", "int8")]
    choosing = ("drop_below", "clear_unmarked", "gather_marked")
    for error in ("quantize", "dot_rows", "accumulate_down", *attention, *choosing):
        function = error.split()[0]
        problem = f"its kernels failed their check: {function} computes wrong results"
        refusal = f"instruction set 'avx2' cannot be used; available: portable; not available: avx2 ({problem})"
        assert run_program(program, error) == [f"avx2|{problem}|1", "portable||0", "portable", refusal]
