"""Makes a weight image: which tensors it has, in which kind each is stored, and their packing.

int4 images hold the embedding and the LM head in 8 bits unless the source has them in 4: they are a fifth of a small
model and the most sensitive matrices. The FFN always has the image's own kind.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from glass_core.errors import ConfigurationError
from glass_core.models.spec import ModelSpec
from glass_core.runners.native import quantize
from glass_core.runners.native.image import FORMATS, ImageWriter
from glass_core.runners.native.packing import (
    Blocks,
    Bytes,
    Kind,
    code_column_scales,
    pack_column_scales,
    pack_columns,
    pack_rows,
    pad_rows,
    padded,
)
from glass_core.runners.native.packing import stack as stack_rows
from glass_core.runners.native.sources import WeightSource

FORMAT_KINDS: Mapping[str, Kind] = {"int4": "q4", "int8": "q8", "bf16": "bf16"}
Report = Callable[[int, int], None]  # tensors written, tensors in all

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def ignore_progress(done: int, total: int) -> None:
    """The report of a caller that shows none."""


def write_image(
    path: Path, source: WeightSource, *, image_format: str, fingerprint: str, report: Report = ignore_progress
) -> None:
    """Write the source's image; it appears under `path` when it is complete.

    Raises ConfigurationError for an unknown format and CheckpointError for weights that cannot be stored.
    """
    if image_format not in FORMATS:
        raise ConfigurationError(f"format must be one of {', '.join(FORMATS)}, got {image_format!r}")
    names = tensor_names(source.spec, image_format)
    with ImageWriter(path, image_format=image_format, fingerprint=fingerprint, spec=source.spec, names=names) as writer:
        builder = _Builder(source, writer, FORMAT_KINDS[image_format])
        for done, _ in enumerate(builder.tensors(), start=1):
            report(done, len(names))
        builder.write_notes()


def tensor_names(spec: ModelSpec, image_format: str) -> list[str]:
    """Every tensor of an image, in the order of the file: the order in which a step reads them."""
    names = ["embed_tokens"]
    for index in range(spec.num_layers):
        names += [f"layers.{index}.{name}" for name in _layer_names(spec, image_format)]
    return [*names, "norm"] + ([] if spec.tie_word_embeddings else ["lm_head"])


def _layer_names(spec: ModelSpec, image_format: str) -> list[str]:
    present = {
        "input_norm": True,
        "qkv": True,
        "qkv_bias": spec.qkv_bias,
        "q_norm": spec.qk_norm,
        "k_norm": spec.qk_norm,
        "o": True,
        "o_bias": spec.attention_output_bias,
        "attention_output_norm": spec.sandwich_norms,
        "post_norm": True,
        "gate_up": True,
        "inputs": True,
        "input_scales": image_format != "bf16",
        "input_units": image_format == "int4",
        "down": True,
        "down_scales": image_format != "bf16",
        "gate_bias": spec.mlp_bias,
        "up_bias": spec.mlp_bias,
        "down_bias": spec.mlp_bias,
        "ffn_output_norm": spec.sandwich_norms,
    }
    return [name for name, is_present in present.items() if is_present]


# vectors of a layer -> canonical names of what they hold, one after the other
VECTORS: Mapping[str, tuple[str, ...]] = {
    "input_norm": ("input_layernorm.weight",),
    "qkv_bias": tuple(f"{name}.bias" for name in _QKV),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
    "o_bias": ("self_attn.o_proj.bias",),
    "attention_output_norm": ("attention_output_norm.weight",),
    "post_norm": ("post_attention_layernorm.weight",),
    "gate_bias": ("mlp.gate_proj.bias",),
    "up_bias": ("mlp.up_proj.bias",),
    "down_bias": ("mlp.down_proj.bias",),
    "ffn_output_norm": ("ffn_output_norm.weight",),
}
# matrices of a layer -> canonical names of what they hold, rows after rows
ROWS: Mapping[str, tuple[str, ...]] = {
    "qkv": tuple(f"{name}.weight" for name in _QKV),
    "o": ("self_attn.o_proj.weight",),
}
# of every neuron its row of the first, then its row of the second
GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
DOWN = "mlp.down_proj.weight"


class _Builder:
    """Adds the tensors of one image, and remembers which of them are not exact."""

    def __init__(self, source: WeightSource, writer: ImageWriter, kind: Kind) -> None:
        self._source = source
        self._writer = writer
        self._kind = kind
        self._inexact: dict[tuple[str, Kind], list[str]] = defaultdict(list)

    def tensors(self) -> Iterator[str]:
        """Add every tensor; yields the name of each that was added."""
        spec = self._source.spec
        head_kind: Kind = "q8" if self._kind == "q4" else self._kind
        yield self._add_rows("embed_tokens", self._matrix(("embed_tokens.weight",), head_kind))
        for index in range(spec.num_layers):
            yield from self._layer(f"layers.{index}.")
        yield self._vector("norm", ("norm.weight",))
        if not spec.tie_word_embeddings:
            yield self._add_rows("lm_head", self._matrix(("lm_head.weight",), head_kind))

    def write_notes(self) -> None:
        for (stored, kind), names in sorted(self._inexact.items()):
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            self._writer.note(f"{len(names)} {stored} matrices as the nearest {kind}: {shown}")

    def _layer(self, prefix: str) -> Iterator[str]:
        for name in _layer_names(self._source.spec, "bf16"):  # scales come with their columns
            if name == "gate_up":
                yield from self._gate_up(prefix)
            elif name == "inputs":
                continue  # came with the rows
            elif name == "down":
                yield from self._columns(prefix, name, "down_scales", self._in_kind(prefix + DOWN, self._kind))
            elif name in ROWS:
                parts = tuple(prefix + part for part in ROWS[name])
                yield self._add_rows(prefix + name, self._matrix(parts, self._kind))
            else:
                yield self._vector(prefix + name, tuple(prefix + part for part in VECTORS[name]))

    def _vector(self, name: str, parts: tuple[str, ...]) -> str:
        values = np.concatenate([self._source.values(part) for part in parts]).astype("<f4")
        if name.endswith("norm"):
            values += np.float32(self._source.spec.norm_offset)
        self._writer.add(name, "f32", values.view(np.uint8)[None], shape=values.shape, padded_cols=len(values))
        return name

    def _add_rows(self, name: str, blocks: Blocks) -> str:
        self._writer.add(
            name, f"rows_{blocks.kind}", pack_rows(blocks), shape=blocks.shape, padded_cols=padded(blocks.shape[1])
        )
        return name

    def _matrix(self, parts: tuple[str, ...], fallback: Kind) -> Blocks:
        """The parts as one matrix of one kind: exact if they share a kind, else the nearest.

        Where an int4 image meets parts of several precisions, 8 bits serve them all.
        """
        exact_kinds: tuple[Kind, ...] = ("q4", "q8") if self._kind == "q4" else (self._kind,)
        some_exact = False
        for kind in exact_kinds:
            found = [self._source.exact(part, kind) for part in parts]
            blocks = [part for part in found if part is not None]
            if len(blocks) == len(parts):
                return stack_rows(blocks)
            some_exact = some_exact or bool(blocks)
        kind = "q8" if some_exact and self._kind == "q4" else fallback
        return stack_rows([self._in_kind(part, kind) for part in parts])

    def _in_kind(self, part: str, kind: Kind) -> Blocks:
        """Exact if the source has it so, else the nearest, with a note."""
        blocks = self._source.exact(part, kind)
        if blocks is None:
            self._inexact[self._source.stored_type(part), kind].append(part)
            blocks = quantize.nearest(self._source.values(part), kind)
        return blocks

    def _gate_up(self, prefix: str) -> Iterator[str]:
        """By rows, and once more by columns: of every input that of gate and then that of up, each padded."""
        matrices = [self._in_kind(prefix + part, self._kind) for part in GATE_UP]
        num_neurons = self._source.spec.intermediate_size
        neurons_first = np.arange(2 * num_neurons).reshape(2, -1).T.ravel()
        yield self._add_rows(f"{prefix}gate_up", stack_rows(matrices).take_rows(neurons_first))
        wide = [pad_rows(blocks, padded(num_neurons)) for blocks in matrices]
        yield from self._inputs(prefix, stack_rows(wide))

    def _inputs(self, prefix: str, blocks: Blocks) -> Iterator[str]:
        if self._kind != "q4":
            yield from self._columns(prefix, "inputs", "input_scales", blocks)
            return
        yield self._add_columns(f"{prefix}inputs", blocks)
        codes, units = code_column_scales(blocks)
        yield self._add_scales(f"{prefix}input_scales", "coded_scales", codes, blocks)
        yield self._add_scales(f"{prefix}input_units", "scale_units", units, blocks)

    def _columns(self, prefix: str, name: str, scales_name: str, blocks: Blocks) -> Iterator[str]:
        yield self._add_columns(prefix + name, blocks)
        if self._kind != "bf16":
            yield self._add_scales(prefix + scales_name, "column_scales", pack_column_scales(blocks), blocks)

    def _add_columns(self, name: str, blocks: Blocks) -> str:
        shape, outputs = blocks.shape[::-1], blocks.shape[0]
        self._writer.add(name, "columns", pack_columns(blocks), shape=shape, padded_cols=padded(outputs))
        return name

    def _add_scales(self, name: str, kind: str, scales: Bytes, blocks: Blocks) -> str:
        outputs = blocks.shape[0]
        self._writer.add(name, kind, scales, shape=(len(scales), outputs), padded_cols=padded(outputs))
        return name
