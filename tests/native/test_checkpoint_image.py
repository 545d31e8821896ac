"""A model folder's images: what pull and quantize make, which one serves, and what is refused."""

import os
from pathlib import Path

import gguf
import pytest

from glass_core.checkpoint.prepared import open_prepared
from glass_core.errors import CheckpointError
from glass_core.offline.cli import main
from glass_core.runners.native.checkpoint_image import (
    available_formats,
    chosen_format,
    default_format,
    format_for,
    open_image,
    open_or_make_image,
    why_not_makeable,
)
from glass_core.runners.native.image import image_path, read_image
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_models import save_tiny_model

TYPES = gguf.GGMLQuantizationType


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pull_gguf(home: Path, kind: gguf.GGMLQuantizationType, name: str = "tiny") -> Path:
    path = write_tiny_gguf(
        home.parent / "x.gguf", quantization=kind, hidden_size=64, intermediate_size=96, num_attention_heads=4
    )
    assert main(["pull", str(path), "--name", name]) == 0
    return home / "models" / name


def pull_hf(home: Path, seed: int = 0, name: str = "tiny") -> Path:
    source = save_tiny_model(home.parent / f"source-{name}", "llama", seed)
    assert main(["pull", str(source), "--name", name]) == 0
    return home / "models" / name


@pytest.mark.parametrize(
    ("kind", "image_format"), [(TYPES.Q4_0, "int4"), (TYPES.Q4_1, "int4"), (TYPES.Q8_0, "int8"), (TYPES.F32, "int8")]
)
def test_pulling_a_gguf_makes_the_image_of_its_type(
    home: Path, kind: gguf.GGMLQuantizationType, image_format: str
) -> None:
    folder = pull_gguf(home, kind)
    assert available_formats(folder) == (image_format,)
    assert chosen_format(folder, "auto") == image_format
    header = open_image(open_prepared(folder), image_format)
    assert header.exact == (kind != TYPES.F32)


def test_pulling_a_folder_makes_an_int8_image(home: Path) -> None:
    folder = pull_hf(home)
    assert available_formats(folder) == ("int8",)
    assert open_image(open_prepared(folder), "int8").notes


def test_a_model_no_image_can_hold_is_pulled_all_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise CheckpointError("weights too large")

    monkeypatch.setattr("glass_core.offline.quantization.make_image", refuse)
    folder = pull_hf(home)
    assert available_formats(folder) == ()
    assert "no weight image for the native runner: weights too large" in capsys.readouterr().out


def test_quantize_says_whether_anything_was_lost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pull_gguf(home, TYPES.Q4_1)
    image_path(folder, "int4").unlink()
    assert main(["quantize", "tiny"]) == 0
    assert "exactly the checkpoint" in capsys.readouterr().out
    assert main(["quantize", "tiny", "--format", "int8"]) == 0
    printed = capsys.readouterr().out
    assert "not exact" in printed
    assert "as the nearest q8" in printed
    assert available_formats(folder) == ("int4", "int8")


def test_an_exact_image_serves_before_others(home: Path) -> None:
    folder = pull_gguf(home, TYPES.Q4_1)
    assert main(["quantize", "tiny", "--format", "bf16"]) == 0
    assert chosen_format(folder, "auto") == "int4"
    assert chosen_format(folder, "bf16") == "bf16"


def test_without_an_exact_image_the_most_precise_small_one_serves(home: Path) -> None:
    folder = pull_hf(home)
    assert main(["quantize", "tiny", "--format", "int4"]) == 0
    assert chosen_format(folder, "auto") == "int8"


def test_a_missing_image_is_made_once(home: Path) -> None:
    folder = pull_gguf(home, TYPES.Q4_1)
    image_path(folder, "int4").unlink()
    assert why_not_makeable(folder, "int4") is None
    made = open_or_make_image(folder, "auto")
    assert (made.format, made.exact) == ("int4", True)
    time = made.path.stat().st_mtime_ns
    assert open_or_make_image(folder, "auto").path.stat().st_mtime_ns == time


def test_a_folder_that_is_not_writable_gets_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull_hf(home)
    assert why_not_makeable(folder, "int8") is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in str(why_not_makeable(folder, "int4"))
    with pytest.raises(CheckpointError, match=r"is missing; make it with `glass quantize tiny --format int4`"):
        open_or_make_image(folder, "int4")


def test_an_image_of_other_weights_is_refused(home: Path) -> None:
    folder, other = pull_hf(home), pull_hf(home, seed=1, name="other")
    image_path(folder, "int8").write_bytes(image_path(other, "int8").read_bytes())
    with pytest.raises(CheckpointError, match="other weights"):
        open_or_make_image(folder, "auto")


def test_a_truncated_image_is_refused_and_quantize_replaces_it(home: Path) -> None:
    folder = pull_hf(home)
    path = image_path(folder, "int8")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        open_or_make_image(folder, "auto")
    assert main(["quantize", "tiny"]) == 0
    assert read_image(path).fingerprint == open_prepared(folder).fingerprint


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("Q4_0", "int4"), ("Q4_K", "int4"), ("IQ4_NL", "int4"), ("Q8_0", "int8"), ("Q6_K", "int8"), (None, "int8")],
)
def test_format_for(stored: str | None, expected: str) -> None:
    assert format_for(stored) == expected


def test_default_format_of_a_plain_folder(tmp_path: Path) -> None:
    assert default_format(save_tiny_model(tmp_path, "qwen2")) == "int8"
