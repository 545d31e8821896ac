"""Programs made from the kernels' sources by a compiler of the machine, outside the extension's build."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "glass_core/runners/native/csrc"
KERNELS = "glass_core/runners/native/csrc/kernels"
AVX512_VNNI = ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")


def build_program(compiler: str, sources: Mapping[str, Sequence[str]], folder: Path, *link_flags: str) -> Path:
    """Compile each source (path from the root → its flags), all at once, and link them to a program in `folder`."""
    base = [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    objects = {name: folder / f"{Path(name).stem}.o" for name in sources}
    running = [
        subprocess.Popen([*base, *flags, "-c", str(ROOT / name), "-o", str(objects[name])])
        for name, flags in sources.items()
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * len(running)
    program = folder / "program"
    command = [compiler, *link_flags, *map(str, objects.values()), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    return program


def run_program(*command: str, timeout: float = 300) -> list[str]:
    """The lines it printed; the program must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
