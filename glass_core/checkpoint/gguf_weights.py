"""GGUF tensors → HF tensors: names, the row order of llama's query and key projections, norms' offsets."""

import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from glass_core.checkpoint.gguf_config import ROPE_FACTORS
from glass_core.checkpoint.gguf_file import GgufFile
from glass_core.errors import CheckpointError, UnsupportedModelError
from glass_core.models.decoder import canonical_shape
from glass_core.models.registry import tensor_names
from glass_core.models.spec import ModelSpec

_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "attention_output_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "ffn_output_norm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def gguf_name(canonical: str) -> str:
    """`layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    module, _, kind = canonical.rpartition(".")
    if match := _LAYER.fullmatch(module):
        return f"blk.{match[1]}.{_NAMES[match[2]]}.{kind}"
    return f"{_NAMES[module]}.{kind}"


def hf_shapes(file: GgufFile, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """HF name → shape of every tensor, in canonical order, after checking that the file has exactly those.

    Raises CheckpointError (missing, wrong shape) and UnsupportedModelError (tensors the model does not have).
    """
    names = dict(sorted(tensor_names(spec).items()))
    wanted = {gguf_name(canonical): canonical_shape(spec, canonical) for canonical in names}
    if missing := sorted(set(wanted) - set(file.tensors)):
        raise CheckpointError(f"{file.path}: {len(missing)} tensors are missing: {', '.join(missing[:5])}")
    if unknown := sorted(set(file.tensors) - set(wanted) - {ROPE_FACTORS}):
        raise UnsupportedModelError(
            f"{file.path}: {len(unknown)} tensors do not belong to a {spec.model_type} model: {', '.join(unknown[:5])}"
        )
    for name, shape in wanted.items():
        if file.tensors[name].shape != shape:
            found = file.tensors[name].shape
            raise CheckpointError(f"{file.path}: tensor {name!r} has shape {found}, the metadata asks for {shape}")
    return {hf_name: canonical_shape(spec, canonical) for canonical, hf_name in names.items()}


def hf_tensors(file: GgufFile, spec: ModelSpec) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """(HF name, float32 tensor), dequantized one at a time, in the order of `hf_shapes`."""
    for canonical, hf_name in sorted(tensor_names(spec).items()):
        yield hf_name, hf_values(file, spec, canonical)


def hf_values(file: GgufFile, spec: ModelSpec, canonical: str) -> npt.NDArray[np.float32]:
    """One tensor by its canonical name, float32, as an HF checkpoint holds it."""
    values = file.dequantize(gguf_name(canonical))
    if canonical.endswith("norm.weight") and spec.norm_offset:
        return values - np.float32(spec.norm_offset)  # exporters add it
    heads = interleaved_heads(spec, canonical)
    return values if heads is None else split_halves(values, heads)


def interleaved_heads(spec: ModelSpec, canonical: str) -> int | None:
    """Heads of a query or key projection whose rows llama GGUFs interleave; None for any other tensor."""
    if spec.model_type != "llama":
        return None
    heads = {".q_proj.": spec.num_attention_heads, ".k_proj.": spec.num_kv_heads}
    return next((count for part, count in heads.items() if part in canonical), None)


def split_halves(tensor: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Undo the row order of llama GGUFs: rotary pairs lie next to each other there, half a head apart in HF.

    tensor: (num_heads * head_dim, …), rows of a head ordered (pair, member) → (member, pair).
    """
    pairs = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)


def main_quantization(file: GgufFile) -> str:
    """The GGML type that holds most of the values, e.g. Q4_1."""
    counts: Counter[str] = Counter()
    for tensor in file.tensors.values():
        counts[tensor.type_name] += math.prod(tensor.shape)
    return counts.most_common(1)[0][0]
