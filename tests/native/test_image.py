"""The image file: written whole or not at all, read back exactly, and refused when anything about it is wrong."""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_core.checkpoint.prepared import PreparedCheckpoint, open_prepared
from glass_core.errors import CheckpointError, ConfigurationError
from glass_core.runners.native.build_image import tensor_names, write_image
from glass_core.runners.native.decode import decode_image
from glass_core.runners.native.image import (
    ImageHeader,
    ImageWriter,
    check_image,
    read_image,
    verify_payload,
)
from glass_core.runners.native.sources import CheckpointSource, read_values
from tests.tiny_models import FAMILIES, save_tiny_model

PREAMBLE = struct.Struct("<8sIIQ")
# root mean square of (decoded - original) relative to the original's, over all matrices
MAX_ERROR = {"int4": 0.09, "int8": 0.006, "bf16": 0.003}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> PreparedCheckpoint:
    return open_prepared(save_tiny_model(tmp_path_factory.mktemp("tiny"), "qwen3"))


def write(checkpoint: PreparedCheckpoint, path: Path, image_format: str = "int8") -> ImageHeader:
    source = CheckpointSource(checkpoint)
    write_image(path, source, image_format=image_format, fingerprint=checkpoint.fingerprint)
    return read_image(path)


@pytest.fixture
def image(checkpoint: PreparedCheckpoint, tmp_path: Path) -> ImageHeader:
    return write(checkpoint, tmp_path / "native-int8.img")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_format", MAX_ERROR)
def test_decodes_to_the_checkpoint(family: str, image_format: str, tmp_path: Path) -> None:
    checkpoint = open_prepared(save_tiny_model(tmp_path, family))
    header = write(checkpoint, tmp_path / "x.img", image_format)
    decoded = dict(decode_image(header))
    assert set(decoded) == set(checkpoint.tensors)
    for name, ref in checkpoint.tensors.items():
        wanted = read_values(ref)
        assert decoded[name].shape == wanted.shape
        if wanted.ndim == 1:
            rounding = 2e-7 * checkpoint.spec.norm_offset  # of adding the offset
            np.testing.assert_allclose(decoded[name], wanted, rtol=0, atol=rounding)
        else:
            error = np.sqrt(np.mean((decoded[name] - wanted) ** 2) / np.mean(wanted**2))
            assert error < MAX_ERROR[image_format], name


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"hidden_size": 36, "intermediate_size": 1, "num_attention_heads": 1, "num_key_value_heads": 1}),
        ("mistral", {"hidden_size": 64, "intermediate_size": 32}),
        ("qwen3", {"head_dim": 10, "intermediate_size": 31}),
    ],
)
def test_shapes_and_features(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """bf16 weights make a bf16 image exact, whatever the shapes."""
    checkpoint = open_prepared(save_tiny_model(tmp_path, family, dtype="bfloat16", **overrides))
    header = write(checkpoint, tmp_path / "x.img", "bf16")
    assert header.exact
    assert header.notes == ()
    for name, values in decode_image(header):
        np.testing.assert_array_equal(values, read_values(checkpoint.tensors[name]), err_msg=name)


def test_header_says_what_the_image_is(image: ImageHeader, checkpoint: PreparedCheckpoint) -> None:
    assert (image.format, image.fingerprint, image.spec) == ("int8", checkpoint.fingerprint, checkpoint.spec)
    assert list(image.tensors) == tensor_names(checkpoint.spec, "int8")
    assert not image.exact
    assert "nearest q8" in image.notes[0]
    assert image.payload_offset % 4096 == 0
    assert image.payload_offset + image.payload_bytes == image.path.stat().st_size
    assert all(tensor.offset % 64 == 0 for tensor in image.tensors.values())
    verify_payload(image)


def test_int4_keeps_embedding_and_head_in_8_bits(checkpoint: PreparedCheckpoint, tmp_path: Path) -> None:
    tensors = write(checkpoint, tmp_path / "x.img", "int4").tensors
    assert {tensors[name].kind for name in ("embed_tokens", "lm_head")} == {"rows_q8"}
    assert {tensors[name].kind for name in ("layers.0.qkv", "layers.2.o")} == {"rows_q4"}


def test_fits_its_checkpoint_only(image: ImageHeader, checkpoint: PreparedCheckpoint) -> None:
    check_image(image, fingerprint=checkpoint.fingerprint, spec=checkpoint.spec)
    with pytest.raises(CheckpointError, match=r"other weights .*glass quantize"):
        check_image(image, fingerprint="other", spec=checkpoint.spec)
    spec = replace(checkpoint.spec, norm_eps=0.5)
    with pytest.raises(CheckpointError, match=r"another architecture.*norm_eps"):
        check_image(image, fingerprint=checkpoint.fingerprint, spec=spec)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.9, 0.9999])
def test_truncated_file_is_refused(image: ImageHeader, share: float) -> None:
    content = image.path.read_bytes()
    image.path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"truncated|not a weight image|checksum"):
        read_image(image.path)


def test_longer_file_is_refused(image: ImageHeader) -> None:
    image.path.write_bytes(image.path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="too long"):
        read_image(image.path)


def test_every_flipped_header_bit_is_refused(image: ImageHeader) -> None:
    """One in many positions of the preamble and the JSON; the padding counts too."""
    content = bytearray(image.path.read_bytes())
    for position in [*range(PREAMBLE.size), *range(PREAMBLE.size, image.payload_offset, 97)]:
        content[position] ^= 4
        image.path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_image(image.path)
        content[position] ^= 4


def test_damaged_payload_is_found(image: ImageHeader) -> None:
    content = bytearray(image.path.read_bytes())
    content[image.payload_offset + image.tensors["layers.1.gate_up"].offset + 7] ^= 1
    image.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"layers\.1\.gate_up.*damaged"):
        verify_payload(read_image(image.path))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_image(tmp_path / "none.img")


def forge(image: ImageHeader, change: Any) -> None:
    """Rewrite the header with a valid checksum, as a buggy or hostile writer would."""
    content = image.path.read_bytes()
    *_, header_bytes = PREAMBLE.unpack(content[: PREAMBLE.size])
    values = json.loads(content[PREAMBLE.size :][:header_bytes])
    change(values)
    text = json.dumps(values).encode().ljust(header_bytes)
    preamble = PREAMBLE.pack(b"GLASSIMG", 1, zlib.crc32(text), header_bytes)
    image.path.write_bytes(preamble + text + content[image.payload_offset :])


def change_entry(**changes: Any) -> Any:
    return lambda values: values["tensors"]["layers.0.qkv"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        change_entry(offset=1),
        change_entry(offset=-64),
        change_entry(offset=1 << 40),
        change_entry(offset=True),
        change_entry(num_bytes=64),
        change_entry(kind="rows_q5"),
        change_entry(shape=[1, 2, 3]),
        change_entry(shape=[3]),
        change_entry(padded_cols=1),
        change_entry(crc32="x"),
        lambda values: values.update(format="int3"),
        lambda values: values.update(tensors=[]),
        lambda values: values.update(payload_bytes=64),
        lambda values: values.pop("fingerprint"),
        lambda values: values["spec"].update(wings=2),
        lambda values: values["spec"].pop("rope"),
    ],
)
def test_forged_header_is_refused(image: ImageHeader, change: Any) -> None:
    forge(image, change)
    with pytest.raises(CheckpointError):
        read_image(image.path)


@pytest.mark.parametrize(("name", "problem"), [("other", "expected 'norm'"), ("norm", "not written: other")])
def test_failed_write_leaves_nothing(checkpoint: PreparedCheckpoint, tmp_path: Path, name: str, problem: str) -> None:
    writer = ImageWriter(
        tmp_path / "x.img", image_format="int8", fingerprint="f", spec=checkpoint.spec, names=["norm", "other"]
    )
    with pytest.raises(CheckpointError, match=problem), writer:
        writer.add(name, "f32", np.zeros((1, 8), np.uint8), shape=(2,), padded_cols=2)
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_is_refused(checkpoint: PreparedCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="format must be one of int4, int8, bf16, got 'int3'"):
        write(checkpoint, tmp_path / "x.img", "int3")
