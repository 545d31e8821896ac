"""Opening checkpoint folders: what is found, what is refused, the fingerprint, the manifest."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from glass_core.checkpoint.json_file import read_json_object, write_json_object
from glass_core.checkpoint.manifest import PreparedManifest, read_manifest, write_manifest
from glass_core.checkpoint.prepared import compute_fingerprint, open_prepared
from glass_core.checkpoint.safetensors_file import read_tensor_refs, write_float32
from glass_core.errors import CheckpointError, UnsupportedModelError
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("original"), "llama", tie_word_embeddings=False)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the tensors (name → array) and save them again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Split model.safetensors into two shards with an index; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    write_json_object(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return weight_map


def test_refs_point_at_the_tensors(folder: Path) -> None:
    checkpoint = open_prepared(folder)
    assert checkpoint.spec.model_type == "llama"
    assert list(checkpoint.tensors) == sorted(checkpoint.tensors)
    ref = checkpoint.tensors["layers.1.mlp.up_proj.weight"]
    assert (ref.dtype, ref.shape) == ("F32", (88, 48))
    with safe_open(ref.path, "numpy") as file:
        expected = file.get_tensor(ref.name)
    stored = np.frombuffer(ref.path.read_bytes(), np.float32, ref.num_bytes // 4, ref.start).reshape(ref.shape)
    np.testing.assert_array_equal(stored, expected)


def test_bfloat16_is_described_without_loading(tmp_path: Path) -> None:
    checkpoint = open_prepared(save_tiny_model(tmp_path, "qwen3", dtype="bfloat16"))
    assert {ref.dtype for ref in checkpoint.tensors.values()} == {"BF16"}


def test_shards_give_the_same_fingerprint(folder: Path) -> None:
    whole = open_prepared(folder).fingerprint
    shard(folder)
    checkpoint = open_prepared(folder)
    assert checkpoint.fingerprint == whole
    assert len({ref.path for ref in checkpoint.tensors.values()}) == 2


def test_fingerprint_sees_one_changed_bit(folder: Path) -> None:
    before = open_prepared(folder).fingerprint
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_prepared(folder).fingerprint != before


def test_fingerprint_does_not_depend_on_the_file_layout(folder: Path) -> None:
    before = open_prepared(folder).fingerprint
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors, reverse=True)
    write_float32(
        folder / "model.safetensors",
        {name: tensors[name].shape for name in names},
        ((name, tensors[name]) for name in names),
    )
    assert open_prepared(folder).fingerprint == before


def test_harmless_rotary_buffer_is_ignored(folder: Path) -> None:
    before = open_prepared(folder).fingerprint
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}))
    assert open_prepared(folder).fingerprint == before


def test_stored_head_beside_tied_embeddings_must_be_equal(folder: Path) -> None:
    config = read_json_object(folder / "config.json")
    write_json_object(folder / "config.json", {**config, "tie_word_embeddings": True})
    with pytest.raises(UnsupportedModelError, match="lm_head"):
        open_prepared(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert "lm_head.weight" not in open_prepared(folder).tensors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), CheckpointError, r"1 tensors are missing: model\.norm\.weight"),
        (lambda t: t.update({"model.extra": t["model.norm.weight"] + 1}), UnsupportedModelError, r"model\.extra"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(47, np.float32)}),
            CheckpointError,
            r"norm\.weight' has shape \(47,\), the config asks for \(48,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(48, np.int8)}),
            UnsupportedModelError,
            "is I8; supported weight types: F32, F16, BF16",
        ),
    ],
)
def test_wrong_tensors(folder: Path, change: Callable[[dict[str, Any]], object], error: type, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(error, match=message):
        open_prepared(folder)


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
def test_truncated_weights(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="truncated"):
        open_prepared(folder)


def test_trailing_bytes_are_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="too long"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickle_is_never_read(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=rf"pickle weights \({name}\); they are never read.*supported: model"):
        open_prepared(folder)


def test_no_weights_says_what_is_supported(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights found; supported: .*\.gguf"):
        open_prepared(folder)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100000, "\xff"])
def test_broken_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_prepared(folder)


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "model.bin", "absent.safetensors"])
def test_index_cannot_leave_the_folder(folder: Path, name: str) -> None:
    weight_map = shard(folder)
    weight_map["lm_head.weight"] = name
    write_json_object(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(CheckpointError, match="shard"):
        open_prepared(folder)


def test_index_without_a_map_and_a_tensor_in_two_shards(folder: Path) -> None:
    weight_map = shard(folder)
    first, second = sorted(set(weight_map.values()))
    shutil.copyfile(folder / first, folder / second)
    with pytest.raises(CheckpointError, match="is also in"):
        open_prepared(folder)
    write_json_object(folder / "model.safetensors.index.json", {"weight_map": {}})
    with pytest.raises(CheckpointError, match="weight_map"):
        open_prepared(folder)


def container(header: object, data: bytes = b"") -> bytes:
    body = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(body).to_bytes(8, "little") + body + data


def entry(begin: int, end: int, shape: list[Any], dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((1 << 62).to_bytes(8, "little") + b"{}", "truncated"),
        (container(b"{]"), "not valid JSON"),
        (container([1]), "not an object"),
        (container({"t": 3}), "malformed header entry for tensor 't'"),
        (container({"t": entry(0, 4, [1], "F99")}), "malformed"),
        (container({"t": entry(0, 4, [1], ["F32"])}), "malformed"),
        (container({"t": entry(0, 4, [-1])}), "malformed"),
        (container({"t": entry(0, 4, [True])}), "malformed"),
        (container({"t": {**entry(0, 4, [1]), "data_offsets": [0, 4, 8]}}, bytes(4)), "malformed"),
        (container({"t": entry(0, 8, [1])}, bytes(8)), "needs 4 bytes, has 8"),
        (container({"t": entry(0, 4, [1 << 40, 1 << 40])}, bytes(4)), "needs"),
        (container({"t": entry(4, 8, [1])}, bytes(8)), "leaves a gap"),
        (container({"t": entry(0, 8, [2]), "u": entry(4, 8, [1])}, bytes(8)), "overlaps"),
        (container({"t": entry(0, 8, [2])}, bytes(4)), "truncated: the header promises"),
    ],
)
def test_forged_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "forged.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensor_refs(path)


def test_written_file_is_read_by_the_library(tmp_path: Path) -> None:
    tensors: Mapping[str, Any] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "a": np.ones((1,), np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "t.safetensors"
    write_float32(path, {name: tensor.shape for name, tensor in tensors.items()}, tensors.items())
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys() == read_tensor_refs(path).keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_writer_refuses_what_it_was_not_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected 'a'"):
        write_float32(tmp_path / "t", {"a": (2,)}, [("a", np.ones(3, np.float32))])


def manifest_for(folder: Path) -> PreparedManifest:
    size = (folder / "model.safetensors").stat().st_size
    return PreparedManifest("m", "llama", "test", None, None, "f" * 64, {"model.safetensors": size}, "0")


def test_manifest_fingerprint_is_used_and_a_replaced_file_noticed(folder: Path) -> None:
    write_manifest(folder, manifest_for(folder))
    assert read_manifest(folder) == manifest_for(folder)
    assert open_prepared(folder).fingerprint == "f" * 64
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}))
    with pytest.raises(CheckpointError, match=r"the manifest says .* pull the model again"):
        open_prepared(folder)


@pytest.mark.parametrize(
    "change", [{"format_version": 99}, {"novel": 1}, {"fingerprint": 3}, {"weight_files": {"absent.safetensors": 1}}]
)
def test_broken_manifest(folder: Path, change: dict[str, Any]) -> None:
    write_manifest(folder, manifest_for(folder))
    write_json_object(folder / "glass.json", {**read_json_object(folder / "glass.json"), **change})
    with pytest.raises(CheckpointError, match="pull the model again"):
        open_prepared(folder)


def test_fingerprint_covers_names_and_shapes(folder: Path) -> None:
    tensors = open_prepared(folder).tensors
    ref = tensors["norm.weight"]
    reference = compute_fingerprint({"norm.weight": ref})
    assert compute_fingerprint({"other.weight": ref}) != reference
    assert compute_fingerprint({"norm.weight": replace(ref, shape=(6, 8))}) != reference
    assert compute_fingerprint({"norm.weight": replace(ref, dtype="I32")}) != reference


def test_unreadable_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensor_refs(tmp_path)  # a folder where a file is expected


def test_oversized_json_is_refused(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(300 << 20)  # sparse: takes no disk
    with pytest.raises(CheckpointError, match="larger than"):
        open_prepared(folder)
