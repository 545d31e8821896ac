"""Random models: one set of weights in a GGUF file and in the native image; and the bytes an image's step reads."""

from pathlib import Path

import numpy as np
import pytest

from glass_core.checkpoint.gguf_file import open_gguf
from glass_core.checkpoint.gguf_weights import gguf_name, split_halves
from glass_core.errors import ConfigurationError
from glass_core.offline.bench.random_model import RandomModel, Shape, random_model
from glass_core.offline.bench.session import open_random_session
from glass_core.offline.bench.traffic import image_step_traffic
from glass_core.runners.native.extension import why_missing
from glass_core.runners.native.image import image_path, map_payload, read_image
from glass_core.runners.native.packing import unpack_rows
from glass_core.sparsity.plan import SparsityPlan

SHAPES = {
    "tied": Shape(128, 192, 2, 4, 2, 32, 320, tied=True),
    "untied": Shape(64, 96, 2, 2, 1, 32, 256, tied=False),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "ggml_type", "image_format"),
    [("tied", "Q4_0", "int4"), ("untied", "Q4_1", "int4"), ("tied", "Q8_0", "int8"), ("untied", "BF16", "bf16")],
)
def test_image_and_gguf_hold_the_same_weights(name: str, ggml_type: str, image_format: str) -> None:
    model = random_model(name, ggml_type, seed=3, shapes=SHAPES)
    assert model.image_format == image_format
    header = read_image(image_path(model.folder, image_format))
    assert header.exact
    file = open_gguf(model.gguf)
    stored = file.dequantize(gguf_name("layers.1.self_attn.q_proj.weight"))
    expected = split_halves(stored, SHAPES[name].num_heads)
    tensor = header.tensors["layers.1.qkv"]
    packed = map_payload(header)[tensor.offset : tensor.offset + tensor.num_bytes].reshape(tensor.shape[0], -1)
    kind = {"int4": "q4", "int8": "q8", "bf16": "bf16"}[image_format]
    found = unpack_rows(packed, kind, tensor.shape[1]).decode()[: len(expected)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected)
    assert 0.5 < np.std(expected) * np.sqrt(SHAPES[name].hidden_size) < 1.5


def test_a_model_is_written_once(home: Path) -> None:
    first = random_model("tied", "Q4_0", seed=0, shapes=SHAPES)
    times = [path.stat().st_mtime_ns for path in sorted(first.folder.iterdir())]
    assert random_model("tied", "Q4_0", seed=0, shapes=SHAPES) == first
    assert times == [path.stat().st_mtime_ns for path in sorted(first.folder.iterdir())]
    other = random_model("tied", "Q4_0", seed=1, shapes=SHAPES)
    assert other.gguf.read_bytes() != first.gguf.read_bytes()
    assert first.folder.is_relative_to(home / "random")


def test_unknown_shapes_and_types_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--random must be one of llama-1b, llama-3b, llama-8b, got 'gpt'"):
        random_model("gpt", "Q4_0", seed=0)
    with pytest.raises(ConfigurationError, match="type must be one of"):
        random_model("llama-1b", "Q2_K", seed=0)


def test_a_random_model_decodes() -> None:
    if (reason := why_missing()) is not None:
        pytest.skip(reason)
    from glass_core.offline.bench.decode import DecodeSettings, run_decode
    from glass_core.offline.progress import SilentProgress

    settings = DecodeSettings(sparsities=(0.0, 0.5), num_tokens=2, prompt_tokens=4, repeats=2)
    model = random_model("tied", "Q4_0", seed=0, shapes=SHAPES)
    with open_random_session(model, num_threads=1, num_sequences=2, num_tokens=8) as session:
        result = run_decode(session, settings, SilentProgress(), "glass bench decode")
    assert result["conditions"]["quantization"] == "int4"
    dense, half = result["rows"]
    assert half["ffn_bytes_per_token"] < dense["ffn_bytes_per_token"] < dense["bytes_per_token"]


def kept(*layers: list[int]) -> SparsityPlan:
    neurons = tuple(np.array(layer, np.int32) for layer in layers)
    return SparsityPlan("griffin", "uniform", None, 0.5, 192, neurons)


def test_a_step_reads_the_union_of_its_neurons_once() -> None:
    model: RandomModel = random_model("tied", "Q4_0", seed=0, shapes=SHAPES)
    header = read_image(image_path(model.folder, "int4"))
    dense = image_step_traffic(header, [None], num_keys=0, kv_cache_dtype="bf16")
    embedding = header.tensors["embed_tokens"]
    # of up_proj a step without refined rows reads the rows only
    columns = (".inputs", ".input_scales", ".input_units")
    everything = sum(tensor.num_bytes for name, tensor in header.tensors.items() if not name.endswith(columns))
    assert dense.total_bytes == everything + embedding.row_bytes
    assert (
        image_step_traffic(header, [None, kept([0], [1])], num_keys=0, kv_cache_dtype="bf16").ffn_bytes
        == dense.ffn_bytes
    )
    row, column, scales = (header.tensors[f"layers.0.{name}"].row_bytes for name in ("gate_up", "down", "down_scales"))
    one = image_step_traffic(header, [kept([0, 1, 40], [5])], num_keys=10, kv_cache_dtype="bf16")
    assert one.ffn_bytes == 4 * (2 * row + column) + 3 * scales
    both = image_step_traffic(header, [kept([0, 1, 40], [5]), kept([1, 2], [5])], num_keys=10, kv_cache_dtype="bf16")
    assert both.ffn_bytes == 5 * (2 * row + column) + 3 * scales
    assert both.kv_bytes == 2 * one.kv_bytes == 2 * (2 * 2 * 10 * 64 * 2)
