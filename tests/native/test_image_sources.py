"""Blocks of GGUF files reach the image without loss, straight from the file and recovered from its dequantized copy."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from glass_core.checkpoint.gguf_config import hf_config
from glass_core.checkpoint.gguf_file import GgufFile, open_gguf
from glass_core.checkpoint.gguf_weights import gguf_name, hf_tensors
from glass_core.checkpoint.prepared import open_prepared
from glass_core.models.registry import load_spec, tensor_names
from glass_core.offline.pull.prepare import prepare_gguf
from glass_core.runners.native.build_image import write_image
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.decode import decode_image
from glass_core.runners.native.gguf_source import GgufSource
from glass_core.runners.native.image import ImageHeader, read_image, verify_payload
from glass_core.runners.native.packing import Floats
from glass_core.runners.native.sources import CheckpointSource
from tests.tiny_gguf import write_tiny_gguf

TYPES: Any = gguf.GGMLQuantizationType
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}


def canonical_values(file: GgufFile) -> dict[str, Floats]:
    """What the reference dequantization makes of the file."""
    spec = load_spec(hf_config(file))
    canonical = {hf_name: name for name, hf_name in tensor_names(spec).items()}
    return {canonical[name]: values for name, values in hf_tensors(file, spec)}


def image_of(path: Path, image_format: str) -> ImageHeader:
    file = open_gguf(path)
    target = path.with_suffix(".img")
    source = GgufSource(file, load_spec(hf_config(file)))
    write_image(target, source, image_format=image_format, fingerprint="f")
    return read_image(target)


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("kind", "image_format"), [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q5_0", "int8"), ("Q8_0", "int8")]
)
def test_blocks_are_taken_over_exactly(family: str, kind: str, image_format: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf", family, quantization=TYPES[kind], **SIZES)
    header, wanted = image_of(path, image_format), canonical_values(open_gguf(path))
    assert header.exact
    decoded = dict(decode_image(header))
    assert set(decoded) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(decoded[name], values, err_msg=name)


@pytest.mark.parametrize(("kind", "image_format"), [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q8_0", "int8")])
def test_blocks_are_recovered_from_the_dequantized_checkpoint(kind: str, image_format: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf", quantization=TYPES[kind], **SIZES)
    prepare_gguf(path, tmp_path / "model", name="x", origin="test", license_=None, report=lambda done, total: None)
    header = make_image(open_prepared(tmp_path / "model"), image_format)
    assert header.exact
    wanted = canonical_values(open_gguf(path))
    for name, values in decode_image(header):
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def test_bf16_tensors_make_an_exact_bf16_image(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf", quantization=TYPES.BF16, **SIZES)
    header, wanted = image_of(path, "bf16"), canonical_values(open_gguf(path))
    assert header.exact
    for name, values in decode_image(header):
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def test_other_types_are_requantized_with_a_note(tmp_path: Path) -> None:
    """F16 matrices have no blocks to take over."""
    path = write_tiny_gguf(tmp_path / "x.gguf", quantization=TYPES.F16, **SIZES)
    header = image_of(path, "int8")
    assert not header.exact
    assert any("F16 matrices as the nearest q8: " in note for note in header.notes)


def test_a_q8_matrix_in_an_int4_image(tmp_path: Path) -> None:
    """One of q, k, v in 8 bits: the stack is stored in 8 bits; in a neuron record 4 bits must do. Both are noted."""
    path = write_tiny_gguf(tmp_path / "x.gguf", "qwen3", quantization=TYPES.Q4_1, **SIZES)
    file = open_gguf(path)
    source = GgufSource(file, load_spec(hf_config(file)))
    wider = {"layers.1.self_attn.v_proj.weight", "layers.0.mlp.down_proj.weight", "layers.2.self_attn.o_proj.weight"}
    exact = source.exact
    source.exact = lambda name, kind: None if name in wider else exact(name, kind)  # type: ignore[method-assign]
    write_image(tmp_path / "x.img", source, image_format="int4", fingerprint="f")
    header = read_image(tmp_path / "x.img")
    kinds = {name: header.tensors[name].kind for name in ("layers.0.qkv", "layers.1.qkv", "layers.2.o")}
    assert kinds == {"layers.0.qkv": "rows_q4", "layers.1.qkv": "rows_q8", "layers.2.o": "rows_q4"}
    assert len(header.notes) == 2
    assert "layers.0.mlp.down_proj.weight" in header.notes[0]


def test_q4_0_scale_too_large_for_its_minimum_is_not_taken_over(tmp_path: Path) -> None:
    """-8 * scale must fit float16."""
    path = write_tiny_gguf(tmp_path / "x.gguf", "qwen3", quantization=TYPES.Q4_0, **SIZES)
    name = "layers.0.mlp.up_proj.weight"
    tensor = open_gguf(path).tensors[gguf_name(name)]
    content = bytearray(path.read_bytes())
    content[tensor.start : tensor.start + 2] = np.float16(9000).tobytes()
    path.write_bytes(content)
    file = open_gguf(path)
    assert GgufSource(file, load_spec(hf_config(file))).exact(name, "q4") is None


@pytest.mark.model
def test_default_model_has_exactly_the_checkpoints_weights(default_model: Path, tmp_path: Path) -> None:
    """The pulled default model was dequantized from Q4_1 and Q8_0 blocks; its image holds just those."""
    checkpoint = open_prepared(default_model)
    path = tmp_path / "x.img"
    write_image(path, CheckpointSource(checkpoint), image_format="int4", fingerprint=checkpoint.fingerprint)
    header = read_image(path)
    assert header.exact
    assert header.tensors["embed_tokens"].kind == "rows_q8"
    verify_payload(header)
    source = CheckpointSource(checkpoint)
    for name, values in decode_image(header):
        np.testing.assert_array_equal(values, source.values(name), err_msg=name)
