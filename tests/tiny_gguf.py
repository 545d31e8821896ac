"""Tiny GGUF files made from the tiny HF models, written with the `gguf` package as an exporter would."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.tiny_models import (
    BOS_TOKEN_ID,
    CHAT_TEMPLATE,
    EOS_TOKEN_ID,
    PAD_TOKEN_ID,
    SPECIAL_TOKENS,
    tiny_model,
    tiny_tokenizer,
)

Array = npt.NDArray[np.float32]
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA3_PARTS = {
    **_PARTS,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# what a GGUF file of this architecture can say: it has no key for the scale of scores
GEMMA3 = {"query_pre_attn_scalar": 16, "layer_types": None, "sliding_window_pattern": 2}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def hf_tensors(family: str, **overrides: Any) -> dict[str, Array]:
    """The tiny model's parameters under their HF names."""
    model = tiny_model(family, **overrides)
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def write_tiny_gguf(
    path: Path,
    family: str = "llama",
    *,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, Array] | None = None,
    drop: str | None = None,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **overrides: Any,
) -> Path:
    """Write the tiny model of a family. `metadata` entries replace the default ones (None removes one), `extra` adds
    tensors under GGUF names, `drop` leaves one out, `quantization` is applied to matrices whose rows allow it."""
    if family == "gemma3_text":
        overrides = {**GEMMA3, **overrides}
    config = tiny_model(family, **overrides).config
    writer = gguf.GGUFWriter(path, family.removesuffix("_text"))
    for key, value in {**_sizes(family, config), **tokenizer_metadata(), **(metadata or {})}.items():
        if value is not None:
            _add_entry(writer, key, value)
    tensors = {
        _gguf_name(family, name): _exported_rows(family, name, tensor, config)
        for name, tensor in hf_tensors(family, **overrides).items()
    }
    for name, tensor in {**tensors, **(extra or {})}.items():
        if name != drop:
            _add_tensor(writer, name, tensor, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sizes(family: str, config: Any) -> dict[str, Any]:
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if family in ("gemma3_text", "qwen3"):
        sizes |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if family == "gemma3_text":
        sizes |= {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": 2}
    return {f"{family.removesuffix('_text')}.{key}": value for key, value in sizes.items()}


def tokenizer_metadata() -> dict[str, Any]:
    """The tiny tokenizer as GGUF metadata, with SmolLM's pre-tokenizer."""
    model = json.loads(tiny_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": BOS_TOKEN_ID,
        "tokenizer.ggml.eos_token_id": EOS_TOKEN_ID,
        "tokenizer.ggml.padding_token_id": PAD_TOKEN_ID,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _add_entry(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add: Mapping[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def _gguf_name(family: str, hf_name: str) -> str:
    module, _, kind = hf_name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    parts = _GEMMA3_PARTS if family == "gemma3_text" else _PARTS
    return f"blk.{layer}.{parts[part]}.{kind}"


def _exported_rows(family: str, hf_name: str, tensor: Array, config: Any) -> Array:
    """llama.cpp's converter reorders llama's query and key rows: row (half, pair) of a head becomes (pair, half)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = hf_name.split(".")[-2]
    if family == "gemma3_text" and module.endswith("norm"):
        return tensor + np.float32(1)
    if family != "llama" or module not in heads:
        return tensor
    num_rows, half = tensor.shape[0], tensor.shape[0] // heads[module] // 2
    order = [
        head * 2 * half + member * half + pair
        for head in range(heads[module])
        for pair in range(half)
        for member in range(2)
    ]
    assert sorted(order) == list(range(num_rows))
    return np.ascontiguousarray(tensor[order])


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Array, quantization: gguf.GGMLQuantizationType) -> None:
    block, _ = gguf.GGML_QUANT_SIZES[quantization]
    if tensor.ndim == 2 and tensor.shape[1] % block == 0:
        writer.add_tensor(name, gguf.quantize(tensor, quantization), raw_dtype=quantization)
    else:
        writer.add_tensor(name, tensor)
