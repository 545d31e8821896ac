"""What `auto` means: native where its extension and an image are there, else the torch runner with a note."""

from pathlib import Path
from typing import Any

import pytest

from glass_core.config import AUTO, EngineConfig
from glass_core.engine import runner_choice
from glass_core.engine.loading import load_engine
from glass_core.engine.runner_choice import choose_runner
from glass_core.errors import ConfigurationError
from glass_core.offline.cli import main
from glass_core.runners.native import availability
from tests.tiny_models import save_tiny_model


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pulled tiny model, whose pull made an int8 image, and an extension that is there."""
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(availability, "why_missing", lambda: None)
    source = save_tiny_model(tmp_path / "source", "llama")
    assert main(["pull", str(source), "--name", "tiny"]) == 0
    return tmp_path / "home" / "models" / "tiny"


def resolved(folder: Path, **changes: Any) -> tuple[str, str, tuple[str, ...]]:
    choice = choose_runner(EngineConfig(model_path=folder, model_name="tiny", **changes))
    return choice.config.runner, choice.config.dtype, choice.notes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("native", "int8")),
        ({"dtype": "int4"}, ("native", "int4")),
        ({"runner": "native"}, ("native", "int8")),
        ({"runner": "native", "dtype": "bf16"}, ("native", "bf16")),
        ({"dtype": "float32"}, ("torch_runner", "float32")),
        ({"dtype": "bfloat16"}, ("torch_runner", "bfloat16")),
        ({"runner": "torch_runner"}, ("torch_runner", "float32")),
        ({"runner": "torch_runner", "dtype": "bfloat16"}, ("torch_runner", "bfloat16")),
        ({"runner": "other"}, ("other", AUTO)),
    ],
)
def test_resolves(pulled: Path, changes: dict[str, Any], expected: tuple[str, str]) -> None:
    assert resolved(pulled, **changes) == (*expected, ())


def test_without_the_extension_torch_serves_and_a_note_says_why(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "why_missing", lambda: "no compiler")
    runner, dtype, (note,) = resolved(pulled)
    assert (runner, dtype) == ("torch_runner", "float32")
    assert "no compiler" in note
    with pytest.raises(ConfigurationError, match=r"'int8' needs the native runner.* no compiler"):
        resolved(pulled, dtype="int8")


def test_on_a_gpu_torch_serves(pulled: Path) -> None:
    runner, _, (note,) = resolved(pulled, device="cuda")
    assert runner == "torch_runner"
    assert "CPU only" in note


def test_a_plain_folder_is_not_written_into(tmp_path: Path, pulled: Path) -> None:
    """Only prepared checkpoints get an image by themselves; for others `glass quantize` is asked for once."""
    runner, _, (note,) = resolved(tmp_path / "source")
    assert runner == "torch_runner"
    assert "glass quantize" in note
    assert main(["quantize", str(tmp_path / "source")]) == 0
    assert resolved(tmp_path / "source") == ("native", "int8", ())


def test_unknown_dtype_is_refused(pulled: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dtype must be one of auto, int4, .*bfloat16, got 'int3'"):
        resolved(pulled, dtype="int3")
    with pytest.raises(ConfigurationError, match="for native, got 'float32'"):
        availability.why_not(EngineConfig(model_path=pulled, model_name="tiny", dtype="float32"))


def test_the_note_is_logged_and_reaches_the_engines_info(
    pulled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner_choice, "why_not", lambda config: "no compiler")
    engine = load_engine(EngineConfig(model_path=pulled, model_name="tiny"))
    assert (engine.info.runner, engine.info.dtype) == ("torch_runner", "float32")
    assert "no compiler" in engine.info.notes[0]
    assert [record.getMessage() for record in caplog.records if "no compiler" in record.getMessage()] == [
        engine.info.notes[0]
    ]
