"""The import contracts of pyproject.toml hold, and each of them fails when it is violated.

The violations are planted in a copy of the packages, one per contract, and checked with the real `lint-imports`.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.contracts.repository import PACKAGES, ROOT

# contract -> (file, the import that must not be there)
VIOLATIONS = {
    "server layers": ("server/config.py", "import server.app"),
    "glass_core layers": ("glass_core/errors.py", "import glass_core.api"),
    "the server sees only the contract of the core": ("server/sse.py", "import glass_core.sparsity.plan"),
    "the online path without a runner never reaches torch": ("glass_core/engine/scheduler.py", "import torch"),
    "the native runner never reaches torch": (
        "glass_core/runners/native/packing.py",
        "import glass_core.runners.torch_runner.weights",
    ),
    "selectors do not know their siblings": (
        "glass_core/sparsity/selectors/griffin.py",
        "import glass_core.sparsity.selectors.a_glass",
    ),
    "families do not know their siblings": ("glass_core/models/llama.py", "import glass_core.models.qwen2"),
}


def contract_names() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return [contract["name"] for contract in settings["contracts"]]


def lint(root: Path) -> dict[str, bool]:
    """Contract name -> kept, as `lint-imports` in `root` says."""
    # without the import hook of an editable installation, which would find the packages where they were installed from
    program = (
        "import sys; sys.path.insert(0, '.'); "
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in type(finder).__module__]; "
        "from importlinter.cli import lint_imports; lint_imports(no_cache=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    verdicts = {
        name: re.search(rf"^{re.escape(name)} (KEPT|BROKEN)", done.stdout, flags=re.MULTILINE)
        for name in contract_names()
    }
    assert all(verdicts.values()), done.stdout + done.stderr
    return {name: verdict is not None and verdict[1] == "KEPT" for name, verdict in verdicts.items()}


@pytest.fixture
def copy_of_packages(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold() -> None:
    assert lint(ROOT) == dict.fromkeys(contract_names(), True)


def test_every_contract_has_a_planted_violation() -> None:
    assert set(VIOLATIONS) == set(contract_names())


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_planted_violation_breaks_its_contract(copy_of_packages: Path, contract: str) -> None:
    file, statement = VIOLATIONS[contract]
    with (copy_of_packages / file).open("a") as source:
        source.write(f"\n{statement}\n")
    assert not lint(copy_of_packages)[contract]
