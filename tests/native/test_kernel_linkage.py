"""Kernel files define no function that the linker could give to code of another instruction set."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.compiled import AVX512_VNNI, KERNELS, ROOT, SOURCES

COMPILER, NM = shutil.which("g++"), shutil.which("nm")
AVX2 = ("-mavx2", "-mfma", "-mf16c")


@pytest.mark.skipif(not COMPILER or not NM or platform.machine() != "x86_64", reason="needs g++ and nm on x86-64")
@pytest.mark.parametrize(("isa", "flags"), [("portable", ()), ("avx2", AVX2), ("avx512_vnni", AVX512_VNNI)])
def test_no_function_has_external_linkage(isa: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Without optimization, so that what could be inlined is there to be seen."""
    source, compiled = ROOT / KERNELS / f"kernels_{isa}.cpp", tmp_path / "kernels.o"
    command = [str(COMPILER), "-std=c++20", "-O0", f"-I{SOURCES}", *flags, "-c", str(source), "-o", str(compiled)]
    subprocess.run(command, check=True, timeout=120)
    listed = subprocess.run(
        [str(NM), "--demangle", "--defined-only", str(compiled)], capture_output=True, text=True, check=True, timeout=60
    )
    symbols = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    # nm's letters: text, weak, weak object, unique
    assert [name for _, letter, name in symbols if letter in "TWVu"] == []
    assert any(name.endswith("Kernels") for _, _, name in symbols)
