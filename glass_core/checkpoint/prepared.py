"""Opens a checkpoint folder: config → spec, files → canonical tensors, and the fingerprint of the weights.

A prepared checkpoint is an HF folder (config.json, safetensors, tokenizer.json, …) plus `glass.json`. A plain HF
folder opens too; its fingerprint is then computed, which reads all weights once. Pickle files (.bin, .pt, .pkl) are
never read: loading one runs code of its author.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glass_core.checkpoint.json_file import read_json_object
from glass_core.checkpoint.manifest import read_manifest
from glass_core.checkpoint.mapped_file import map_file
from glass_core.checkpoint.safetensors_file import TensorRef, read_tensor_refs
from glass_core.config import PREPARED_MANIFEST
from glass_core.errors import CheckpointError, UnsupportedModelError
from glass_core.models.decoder import canonical_shape
from glass_core.models.registry import load_spec, tensor_names
from glass_core.models.spec import ModelSpec

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SUPPORTED = f"supported: {SINGLE_FILE}, sharded safetensors with {INDEX_FILE}, or a .gguf file (through `glass pull`)"
WEIGHT_DTYPES = ("F32", "F16", "BF16")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_HARMLESS_SUFFIXES = (".rotary_emb.inv_freq",)  # a buffer old exporters saved; it follows from the config


@dataclass(frozen=True, slots=True)
class PreparedCheckpoint:
    """A checked checkpoint; nothing is loaded. `tensors` maps canonical names to their place on disk."""

    model_dir: Path
    spec: ModelSpec
    fingerprint: str
    tensors: Mapping[str, TensorRef]


def open_prepared(model_dir: Path) -> PreparedCheckpoint:
    """Open a prepared checkpoint or a plain HF safetensors folder.

    Raises UnsupportedModelError (architecture, config feature, weight type) and CheckpointError (missing, truncated or
    malformed files, missing or unknown tensors, wrong shapes, pickle only).
    """
    spec = load_spec(read_json_object(model_dir / "config.json"))
    tensors = find_tensors(model_dir, spec)
    if (model_dir / PREPARED_MANIFEST).is_file():
        fingerprint = read_manifest(model_dir).fingerprint
    else:
        fingerprint = compute_fingerprint(tensors)
    return PreparedCheckpoint(model_dir, spec, fingerprint, tensors)


def find_tensors(model_dir: Path, spec: ModelSpec) -> dict[str, TensorRef]:
    """Canonical name → place on disk, sorted by name, for exactly the tensors the spec needs."""
    stored: dict[str, TensorRef] = {}
    for path in weight_files(model_dir):
        for name, ref in read_tensor_refs(path).items():
            if name in stored:
                raise CheckpointError(f"{path}: tensor {name!r} is also in {stored[name].path.name}")
            stored[name] = ref
    names = tensor_names(spec)
    _refuse_missing(model_dir, names, stored)
    _refuse_unknown(model_dir, names, stored, spec)
    tensors = {canonical: stored[name] for canonical, name in sorted(names.items())}
    for canonical, ref in tensors.items():
        _check_tensor(ref, canonical_shape(spec, canonical))
    return tensors


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a folder. Raises CheckpointError when there are none, naming what is there."""
    if (model_dir / SINGLE_FILE).is_file():
        return [model_dir / SINGLE_FILE]
    if (model_dir / INDEX_FILE).is_file():
        return _sharded_files(model_dir)
    pickles = sorted(path.name for path in model_dir.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{model_dir}: only pickle weights ({', '.join(pickles)}); they are never read, because loading a pickle "
            f"can run code. Convert them to safetensors; {SUPPORTED}"
        )
    raise CheckpointError(f"{model_dir}: no weights found; {SUPPORTED}")


def _sharded_files(model_dir: Path) -> list[Path]:
    path = model_dir / INDEX_FILE
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing or empty")
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{path}: shard {shard!r} is not the name of a .safetensors file in this folder")
        if not (model_dir / shard).is_file():
            raise CheckpointError(f"{path}: shard {shard!r} is missing")
    return [model_dir / shard for shard in shards]


def _refuse_missing(model_dir: Path, names: Mapping[str, str], stored: Mapping[str, TensorRef]) -> None:
    missing = sorted(name for name in names.values() if name not in stored)
    if missing:
        raise CheckpointError(f"{model_dir}: {len(missing)} tensors are missing: {_first(missing)}")


def _refuse_unknown(
    model_dir: Path, names: Mapping[str, str], stored: Mapping[str, TensorRef], spec: ModelSpec
) -> None:
    known = set(names.values())
    unknown = sorted(name for name in stored if name not in known and not name.endswith(_HARMLESS_SUFFIXES))
    if spec.tie_word_embeddings and "lm_head.weight" in unknown:
        _check_tied(stored[names["embed_tokens.weight"]], stored["lm_head.weight"])
        unknown.remove("lm_head.weight")
    if unknown:
        raise UnsupportedModelError(
            f"{model_dir}: {len(unknown)} tensors do not belong to a {spec.model_type} model with this config: "
            f"{_first(unknown)}"
        )


def _check_tied(embedding: TensorRef, head: TensorRef) -> None:
    """A stored head beside tie_word_embeddings must be the embedding: otherwise one of the two is wrong."""
    if _content(embedding) != _content(head):
        raise UnsupportedModelError(f"{head.path}: tie_word_embeddings is true, but lm_head.weight differs")


def _check_tensor(ref: TensorRef, shape: tuple[int, ...]) -> None:
    if ref.shape != shape:
        raise CheckpointError(f"{ref.path}: tensor {ref.name!r} has shape {ref.shape}, the config asks for {shape}")
    if ref.dtype not in WEIGHT_DTYPES:
        raise UnsupportedModelError(
            f"{ref.path}: tensor {ref.name!r} is {ref.dtype}; supported weight types: {', '.join(WEIGHT_DTYPES)}"
        )


def compute_fingerprint(tensors: Mapping[str, TensorRef]) -> str:
    """sha256 over (canonical name, dtype, shape, bytes) of all tensors in name order, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        ref = tensors[name]
        digest.update(json.dumps([name, ref.dtype, ref.shape]).encode() + b"\n")
        digest.update(_content(ref))
    return digest.hexdigest()


def _content(ref: TensorRef) -> memoryview:
    """The tensor's bytes, mapped."""
    return map_file(ref.path)[ref.start : ref.start + ref.num_bytes]


def _first(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
