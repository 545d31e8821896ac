"""Makes a prepared checkpoint (a complete HF folder plus `glass.json`) from an HF folder or a GGUF file."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glass_core import __version__
from glass_core.checkpoint.gguf_config import hf_config
from glass_core.checkpoint.gguf_file import GgufFile, open_gguf
from glass_core.checkpoint.gguf_tokenizer import build_tokenizer, special_token
from glass_core.checkpoint.gguf_weights import hf_shapes, hf_tensors, main_quantization
from glass_core.checkpoint.json_file import read_json_object, write_json_object
from glass_core.checkpoint.manifest import PreparedManifest, write_manifest
from glass_core.checkpoint.prepared import INDEX_FILE, SINGLE_FILE, compute_fingerprint, find_tensors, weight_files
from glass_core.checkpoint.safetensors_file import write_float32
from glass_core.errors import CheckpointError
from glass_core.models.registry import load_spec

TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"
_TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer_config.json", TEMPLATE_FILE, "special_tokens_map.json")
_HF_FILES = ("config.json", "generation_config.json", INDEX_FILE, *_TOKENIZER_FILES)

Report = Callable[[int, int], None]  # values written, values in all


def prepare_gguf(source: Path, folder: Path, *, name: str, origin: str, license_: str | None, report: Report) -> None:
    """Convert a GGUF file into `folder`: weights dequantized to float32, one tensor in memory at a time.

    A tokenizer.json beside the source is preferred over the one rebuilt from the metadata. Raises
    UnsupportedModelError and CheckpointError before anything large is written.
    """
    folder.mkdir()
    file = open_gguf(source)
    config = hf_config(file)
    spec = load_spec(config)
    shapes = hf_shapes(file, spec)
    write_json_object(folder / "config.json", config)
    write_json_object(folder / "generation_config.json", _generation_config(file, config))
    _write_gguf_tokenizer(file, folder, config)
    write_float32(folder / SINGLE_FILE, shapes, _reporting(hf_tensors(file, spec), shapes.values(), report))
    license_ = license_ or file.metadata.get("general.license")
    _finish(folder, name=name, origin=origin, license_=license_, quantization=main_quantization(file))


def prepare_hf_folder(source: Path, folder: Path, *, name: str, origin: str) -> None:
    """Check an HF safetensors folder and link or copy what serving needs into `folder`.

    Raises UnsupportedModelError and CheckpointError; nothing is written before the checks.
    """
    spec = load_spec(read_json_object(source / "config.json"))
    find_tensors(source, spec)
    _require_tokenizer(source)
    folder.mkdir()
    for file in weight_files(source):
        _link_or_copy(file, folder / file.name)
    for file_name in _HF_FILES:
        if (source / file_name).is_file():
            shutil.copyfile(source / file_name, folder / file_name)
    _extract_chat_template(folder)
    _finish(folder, name=name, origin=origin, license_=None, quantization=None)


def _finish(folder: Path, *, name: str, origin: str, license_: str | None, quantization: str | None) -> None:
    """Re-read what was written as the runner will, fingerprint it, write the manifest."""
    spec = load_spec(read_json_object(folder / "config.json"))
    manifest = PreparedManifest(
        name=name,
        model_type=spec.model_type,
        source=origin,
        license=license_,
        quantization=quantization,
        fingerprint=compute_fingerprint(find_tensors(folder, spec)),
        weight_files={file.name: file.stat().st_size for file in weight_files(folder)},
        glass_version=__version__,
    )
    write_manifest(folder, manifest)


def _generation_config(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """Special token ids. The end-of-turn token ends a generation as the end-of-text token does."""
    values: dict[str, Any] = {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config
    }
    end_of_turn = file.metadata.get("tokenizer.ggml.eot_token_id")
    if isinstance(end_of_turn, int) and end_of_turn != config.get("eos_token_id"):
        values["eos_token_id"] = [token for token in (config.get("eos_token_id"), end_of_turn) if token is not None]
    return values


def _write_gguf_tokenizer(file: GgufFile, folder: Path, config: dict[str, Any]) -> None:
    if (file.path.parent / TOKENIZER_FILE).is_file():
        for name in _TOKENIZER_FILES:
            if (file.path.parent / name).is_file():
                shutil.copyfile(file.path.parent / name, folder / name)
        _extract_chat_template(folder)
    else:
        build_tokenizer(file.metadata, file.path).save(str(folder / TOKENIZER_FILE))
        write_json_object(folder / "tokenizer_config.json", _tokenizer_config(file, config))
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and not (folder / TEMPLATE_FILE).is_file():
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _tokenizer_config(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    found = {hf_name: special_token(file.metadata, name) for name, hf_name in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in found.items() if token is not None},
    }


def _extract_chat_template(folder: Path) -> None:
    """Older folders keep the template inside tokenizer_config.json; a list there has one named `default`."""
    path = folder / "tokenizer_config.json"
    if (folder / TEMPLATE_FILE).is_file() or not path.is_file():
        return
    template = read_json_object(path).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if isinstance(template, str):
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _require_tokenizer(source: Path) -> None:
    if not (source / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{source}: {TOKENIZER_FILE} is missing; older tokenizer files (tokenizer.model, vocab.json) are not read: "
            "save the tokenizer once with transformers' save_pretrained"
        )


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no disk; across file systems, copy."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _reporting(
    tensors: Iterable[tuple[str, npt.NDArray[np.float32]]], shapes: Iterable[tuple[int, ...]], report: Report
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    total, done = sum(int(np.prod(shape)) for shape in shapes), 0
    for name, tensor in tensors:
        yield name, tensor
        done += tensor.size
        report(done, total)
