"""Models with random weights in the shapes of well-known ones: speed where weights do not fit the caches, no download.

Random codes are written straight into GGUF blocks (for the peer), and the native image takes those blocks over: both
sides run the same weights, and nothing ever exists as float32. Scales keep activations at unit size.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from glass_core.checkpoint.gguf_config import hf_config
from glass_core.checkpoint.gguf_file import open_gguf
from glass_core.checkpoint.json_file import write_json_object
from glass_core.config import glass_home
from glass_core.errors import ConfigurationError
from glass_core.models.registry import load_spec
from glass_core.runners.native.build_image import write_image
from glass_core.runners.native.gguf_source import GgufSource
from glass_core.runners.native.image import image_path

_VERSION = 1
_GROUP = 32
_NORM_EPS, _ROPE_THETA, _CONTEXT = 1e-5, 500_000.0, 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a llama."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool


SHAPES: Mapping[str, Shape] = {
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 64, 128_256, tied=True),
    "llama-3b": Shape(3072, 8192, 28, 24, 8, 128, 128_256, tied=True),
    "llama-8b": Shape(4096, 14_336, 32, 32, 8, 128, 128_256, tied=False),
}
# GGML type of the layers -> format of the image that holds them without loss
IMAGE_FORMATS: Mapping[str, str] = {"Q4_0": "int4", "Q4_1": "int4", "Q8_0": "int8", "BF16": "bf16"}


@dataclass(frozen=True, slots=True)
class RandomModel:
    """Where a random model lies: a folder with config.json and the image, and the GGUF of the same weights."""

    folder: Path
    gguf: Path
    image_format: str


def random_model(name: str, ggml_type: str, *, seed: int, shapes: Mapping[str, Shape] = SHAPES) -> RandomModel:
    """The model of that shape, written once into $GLASS_HOME/random.

    Raises ConfigurationError for an unknown shape or type.
    """
    if name not in shapes:
        raise ConfigurationError(f"--random must be one of {', '.join(shapes)}, got {name!r}")
    if ggml_type not in IMAGE_FORMATS:
        raise ConfigurationError(f"a random model's type must be one of {', '.join(IMAGE_FORMATS)}, got {ggml_type!r}")
    folder = glass_home() / "random" / f"{name}-{ggml_type.lower()}-seed{seed}-v{_VERSION}"
    model = RandomModel(folder, folder / f"{name}.{ggml_type}.gguf", IMAGE_FORMATS[ggml_type])
    folder.mkdir(parents=True, exist_ok=True)
    if not model.gguf.is_file():
        _write_gguf(model.gguf, shapes[name], ggml_type, seed)
    if not image_path(folder, model.image_format).is_file():
        _write_image(model)
    return model


def _write_image(model: RandomModel) -> None:
    """config.json and the image, from the GGUF file."""
    file = open_gguf(model.gguf)
    config = hf_config(file)
    spec = load_spec(config)
    write_json_object(model.folder / "config.json", config)
    write_image(
        image_path(model.folder, model.image_format),
        GgufSource(file, spec),
        image_format=model.image_format,
        fingerprint=hashlib.sha256(model.folder.name.encode()).hexdigest(),
    )


def _write_gguf(path: Path, shape: Shape, ggml_type: str, seed: int) -> None:
    """Tensor by tensor; the file appears when it is complete."""
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "llama")
    _add_metadata(writer, shape)
    for name, rows, cols, kind in _tensors(shape, ggml_type):
        data_type = gguf.GGMLQuantizationType[kind]
        sizes = (cols,) if rows == 0 else (rows, _row_bytes(cols, data_type))
        stored = np.dtype(np.float32 if rows == 0 else np.uint8)
        num_bytes = int(np.prod(sizes)) * stored.itemsize
        raw_type = None if rows == 0 else data_type
        writer.add_tensor_info(name, sizes, stored, num_bytes, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(seed)
    for _, rows, cols, kind in _tensors(shape, ggml_type):
        writer.write_tensor_data(np.ones(cols, np.float32) if rows == 0 else _blocks(generator, rows, cols, kind))
    writer.close()
    partial.replace(path)


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(_NORM_EPS)
    writer.add_rope_freq_base(_ROPE_THETA)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _tensors(shape: Shape, ggml_type: str) -> Iterator[tuple[str, int, int, str]]:
    """(name, rows, columns, GGML type); rows 0 = a vector of norms. Embedding and head have at least 8 bits."""
    wide = "Q8_0" if ggml_type.startswith("Q4") else ggml_type
    hidden, kv_size = shape.hidden_size, shape.num_kv_heads * shape.head_dim
    q_size = shape.num_heads * shape.head_dim
    yield "token_embd.weight", shape.vocab_size, hidden, wide
    for layer in range(shape.num_layers):
        prefix = f"blk.{layer}."
        for name, rows, cols in (
            ("attn_q", q_size, hidden),
            ("attn_k", kv_size, hidden),
            ("attn_v", kv_size, hidden),
            ("attn_output", hidden, q_size),
            ("ffn_gate", shape.intermediate_size, hidden),
            ("ffn_up", shape.intermediate_size, hidden),
            ("ffn_down", hidden, shape.intermediate_size),
        ):
            yield f"{prefix}{name}.weight", rows, cols, ggml_type
        yield f"{prefix}attn_norm.weight", 0, hidden, "F32"
        yield f"{prefix}ffn_norm.weight", 0, hidden, "F32"
    yield "output_norm.weight", 0, hidden, "F32"
    if not shape.tied:
        yield "output.weight", shape.vocab_size, hidden, wide


def _row_bytes(cols: int, data_type: gguf.GGMLQuantizationType) -> int:
    values, num_bytes = gguf.GGML_QUANT_SIZES[data_type]
    return cols // values * num_bytes


def _blocks(generator: np.random.Generator, rows: int, cols: int, kind: str) -> npt.NDArray[np.uint8]:
    """(rows, bytes of a row): random codes, scaled so that a row's product with a unit vector has variance 1 / cols
    times the vector's squared length."""
    if kind == "BF16":
        return _bfloat16(generator, rows, cols)
    header_bytes, payload_bytes, deviation = {"Q4_0": (2, 16, 4.61), "Q4_1": (4, 16, 4.61), "Q8_0": (2, 32, 73.9)}[kind]
    groups = rows * cols // _GROUP
    blocks = np.empty((groups, header_bytes + payload_bytes), np.uint8)
    scale = np.float16(1 / (deviation * np.sqrt(cols)))
    scales = [scale, np.float16(-7.5) * scale][: header_bytes // 2]
    blocks[:, :header_bytes] = np.frombuffer(np.array(scales, np.float16).tobytes(), np.uint8)
    blocks[:, header_bytes:] = np.frombuffer(generator.bytes(groups * payload_bytes), np.uint8).reshape(groups, -1)
    return blocks.reshape(rows, -1)


def _bfloat16(generator: np.random.Generator, rows: int, cols: int) -> npt.NDArray[np.uint8]:
    values = np.empty((rows, cols), np.uint16)
    for row in values:
        sample = generator.standard_normal(cols, np.float32) / np.float32(np.sqrt(cols))
        row[:] = (sample.view(np.uint32) >> 16).astype(np.uint16)
    return values.view(np.uint8)
