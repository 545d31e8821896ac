"""GGUF → HF: weights, config, refusals. The oracle is the model the file was written from."""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from glass_core.checkpoint.gguf_config import hf_config, llama3_frequency_factors
from glass_core.checkpoint.gguf_file import open_gguf
from glass_core.checkpoint.gguf_weights import hf_shapes, main_quantization
from glass_core.checkpoint.gguf_weights import hf_tensors as converted_tensors
from glass_core.errors import CheckpointError, ModelError, UnsupportedModelError
from glass_core.models.registry import load_spec
from tests.tiny_gguf import GEMMA3, hf_tensors, write_tiny_gguf
from tests.tiny_models import tiny_config

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3_text", GEMMA3),
    ],
)
def test_converted_weights_and_config_equal_the_original(
    tmp_path: Path, family: str, overrides: dict[str, Any]
) -> None:
    file = open_gguf(write_tiny_gguf(tmp_path / "m.gguf", family, **overrides))
    spec = load_spec(hf_config(file))
    assert spec == load_spec(tiny_config(family, **overrides).to_dict())
    converted, original = dict(converted_tensors(file, spec)), hf_tensors(family, **overrides)
    assert converted.keys() == original.keys() == hf_shapes(file, spec).keys()
    for name, tensor in original.items():
        rounding = 2e-7 * spec.norm_offset if tensor.ndim == 1 else 0.0  # of adding the offset
        np.testing.assert_allclose(converted[name], tensor, rtol=0, atol=rounding)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_dequantization_equals_the_library_on_the_whole_file(tmp_path: Path, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    path = write_tiny_gguf(
        tmp_path / "m.gguf", quantization=quantization, hidden_size=64, num_attention_heads=4, intermediate_size=96
    )
    file = open_gguf(path)
    assert main_quantization(file) == kind
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.dequantize(tensor.name), expected)
        assert file.dequantize(tensor.name).dtype == np.float32


def test_tokens_and_eps_come_out_exactly(tmp_path: Path) -> None:
    config = hf_config(open_gguf(write_tiny_gguf(tmp_path / "m.gguf", rms_norm_eps=1e-5)))
    assert config["rms_norm_eps"] == 1e-5
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)


def test_linear_rope_scaling(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    rope = load_spec(hf_config(open_gguf(write_tiny_gguf(tmp_path / "m.gguf", metadata=scaling)))).rope
    assert (rope.kind, rope.factor) == ("linear", 4.0)


def test_llama3_frequency_factors_become_their_parameters(tmp_path: Path) -> None:
    factors = llama3_frequency_factors(5e5, 12, LLAMA3).astype(np.float32)
    path = write_tiny_gguf(
        tmp_path / "m.gguf", metadata={"llama.rope.freq_base": 5e5}, extra={"rope_freqs.weight": factors}
    )
    file = open_gguf(path)
    spec = load_spec(hf_config(file))
    assert (spec.rope.kind, spec.rope.factor, spec.rope.original_max_position) == ("llama3", 8.0, 8192)
    assert "rope_freqs.weight" not in hf_shapes(file, spec)


def test_llama3_frequency_factors_are_what_transformers_divides_by() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = tiny_config("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, head_dim=64)
    config.max_position_embeddings = 131072
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 5e5 ** (np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_frequency_factors(5e5, 64, LLAMA3), rtol=1e-5)


def test_other_frequency_factors_are_refused(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.linspace(1, 9, 6, dtype=np.float32)}
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        hf_config(open_gguf(write_tiny_gguf(tmp_path / "m.gguf", extra=extra)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma2"}, "gemma2.*llama, qwen2, qwen3, gemma3"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.expert_count": 8}, "expert_count is 8"),
        ({"llama.attention.sliding_window": 64}, "sliding_window is 64"),
        ({"llama.rope.dimension_count": 6}, "rope.dimension_count is 6"),
        ({"llama.attention.value_length": 6}, "value_length is 6"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale is not supported"),
        ({"split.count": 3}, "split GGUF"),
    ],
)
def test_unsupported_features_are_refused_by_name(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        hf_config(open_gguf(write_tiny_gguf(tmp_path / "m.gguf", metadata=metadata)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None}, "block_count is None"),
        ({"llama.feed_forward_length": [88, 88, 88]}, "feed_forward_length is \\[88"),
        ({"llama.attention.head_count": 0}, "head_count is 0"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon is 'x'"),
    ],
)
def test_malformed_metadata_is_refused_by_name(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        hf_config(open_gguf(write_tiny_gguf(tmp_path / "m.gguf", metadata=metadata)))


def check_tensors(path: Path) -> None:
    file = open_gguf(path)
    hf_shapes(file, load_spec(hf_config(file)))


def test_missing_unknown_and_misshapen_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: blk\.1\.ffn_up\.weight"):
        check_tensors(write_tiny_gguf(tmp_path / "a.gguf", drop="blk.1.ffn_up.weight"))
    with pytest.raises(CheckpointError, match=r"token_embd\.weight is missing"):
        check_tensors(write_tiny_gguf(tmp_path / "b.gguf", drop="token_embd.weight"))
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.extra\.weight"):
        check_tensors(write_tiny_gguf(tmp_path / "c.gguf", extra={"blk.0.extra.weight": np.ones(4, np.float32)}))
    with pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_down\.weight' has shape"):
        check_tensors(write_tiny_gguf(tmp_path / "d.gguf", metadata={"llama.feed_forward_length": 80}))


def test_every_truncation_is_a_checkpoint_error(tmp_path: Path) -> None:
    content = write_tiny_gguf(tmp_path / "m.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 2000, 37), *range(2000, len(content), 4999), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"truncated|not a GGUF"):
            open_gguf(cut)


def test_flipped_header_bytes_never_crash(tmp_path: Path) -> None:
    """A header of random damage either parses or raises one of our errors; it never hangs or reads outside."""
    content = write_tiny_gguf(tmp_path / "m.gguf", num_hidden_layers=1).read_bytes()
    random, damaged = np.random.default_rng(0), tmp_path / "damaged.gguf"
    outcomes = set()
    for _ in range(300):
        data = bytearray(content)
        for position in random.integers(0, 12000, size=4):
            data[position] = int(random.integers(0, 256))
        damaged.write_bytes(data)
        try:
            check_tensors(damaged)
        except ModelError:
            outcomes.add("refused")
        else:
            outcomes.add("parsed")
    assert outcomes == {"refused", "parsed"}


def gguf_bytes(*entries: bytes, num_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, len(entries)) + b"".join(entries) + bytes(64)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(60), "not a GGUF"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(num_tensors=1 << 60), "tensors in"),
        (gguf_bytes(text("a") + struct.pack("<IIQ", 9, 0, 1 << 62)), "values announced"),
        (gguf_bytes(text("a") + struct.pack("<IIQ", 9, 8, 1 << 62)), "announces"),
        (gguf_bytes(text("a") + struct.pack("<IIQ", 9, 9, 1)), "nested"),
        (gguf_bytes(text("a") + struct.pack("<I", 77)), "unknown type 77"),
        (gguf_bytes(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1)), "UTF-8"),
        (gguf_bytes(*[text("a") + struct.pack("<IB", 0, 1)] * 2), "twice"),
        (gguf_bytes(text("general.alignment") + struct.pack("<II", 4, 3)), "alignment is 3"),
    ],
)
def test_forged_headers(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def tensor_record(name: str, dimensions: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([tensor_record("t", (4,), 0, 1 << 40)], CheckpointError, "truncated: tensor 't'"),
        ([tensor_record("t", (31,), 2)], CheckpointError, "whole Q4_0 blocks"),
        ([tensor_record("t", (4, 0), 0)], CheckpointError, "blocks"),
        ([tensor_record("t", (1, 1, 1, 1, 1), 0)], CheckpointError, "5 dimensions"),
        ([tensor_record("t", (4,), 0)] * 2, CheckpointError, "twice"),
        ([tensor_record("t", (4,), 999)], UnsupportedModelError, "quantization type 999"),
    ],
)
def test_forged_tensor_records(tmp_path: Path, records: list[bytes], error: type[Exception], message: str) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(records), 0) + b"".join(records) + bytes(128))
    with pytest.raises(error, match=message):
        open_gguf(path)


def test_quantization_without_a_decoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    kind = gguf.GGMLQuantizationType.Q8_K  # an intermediate type llama.cpp never stores
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor_record("t", (256,), kind) + bytes(512))
    with pytest.raises(UnsupportedModelError, match="Q8_K"):
        open_gguf(path).dequantize("t")


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(tmp_path / "absent.gguf")


def test_config_is_plain_json(tmp_path: Path) -> None:
    config = hf_config(open_gguf(write_tiny_gguf(tmp_path / "m.gguf")))
    assert json.loads(json.dumps(config)) == config
