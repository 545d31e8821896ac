"""Fixtures shared by the tests of the offline tools: a tiny model, its artifact, a file of prompts."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.core.prompt_file import INSTRUCTIONS, write_lines
from tests.tiny_models import save_tiny_model

if TYPE_CHECKING:
    from glass_core.runners.torch_runner.model import TorchModel


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three layers. Tests of one module may add files to it, such as images."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="module")
def model(model_dir: Path) -> "TorchModel":
    """The checkpoint in float32."""
    from glass_core.offline.calibrate.calibration import load_model

    return load_model(model_dir, "cpu")


@pytest.fixture(scope="module")
def artifact(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's artifact, as `glass calibrate` writes it."""
    from glass_core.offline.cli import main

    output = tmp_path_factory.mktemp("artifact") / "tiny.safetensors"
    flags = ["--source", "null", "--num-sequences", "3", "--sequence-length", "24", "--num-held-out", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASS_HOME", str(output.parent / "home"))
        assert main(["calibrate", str(model_dir), *flags, "--output", str(output)]) == 0
    return output


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Instructions as the evaluations read them."""
    return write_lines(tmp_path / "prompts.jsonl", [{"instruction": text} for text in INSTRUCTIONS])
