"""Gemma 3 without its vision part (arXiv 2503.19786): norms around attention and FFN, windows with a RoPE of their own
in five layers of six, scaled embeddings, GeGLU.

Layers call the norm before the FFN `pre_feedforward_layernorm`, and `post_attention_layernorm` the one on the output of
attention.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glass_core.models.config_reader import ConfigReader
from glass_core.models.decoder import (
    ACTIVATIONS,
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    decoder_tensor_names,
    read_decoder,
    read_layer_windows,
)
from glass_core.models.rope_config import read_rope
from glass_core.models.spec import ModelSpec, RopeSpec

DEFAULT_KV_HEADS = 4
DEFAULT_HEAD_DIM = 256
DEFAULT_SLIDING_WINDOW = 4096
DEFAULT_PATTERN = 6
DEFAULT_QUERY_SCALAR = 256.0
DEFAULT_THETA, DEFAULT_LOCAL_THETA = 1_000_000.0, 10_000.0
_HF_NORMS = {
    "attention_output_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "ffn_output_norm": "post_feedforward_layernorm",
}


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Raises UnsupportedModelError naming the first key that is not implemented."""
    reader = ConfigReader(config, "gemma3_text")
    rope, local_rope = _ropes(reader)
    attention_bias = reader.flag("attention_bias", default=False)
    if reader.flag("use_bidirectional_attention", default=False):
        raise reader.refused("use_bidirectional_attention", True, "false")
    spec = read_decoder(
        reader,
        default_kv_heads=DEFAULT_KV_HEADS,
        default_head_dim=DEFAULT_HEAD_DIM,
        default_tied=True,
        activation=reader.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        rope=rope,
    )
    spec = replace(
        spec,
        sliding_window=_windows(reader, spec.num_layers),
        local_rope=local_rope,
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        qk_norm=True,
        sandwich_norms=True,
        norm_offset=1.0,
        embedding_scale=spec.hidden_size**0.5,
        attention_scale=reader.number("query_pre_attn_scalar", DEFAULT_QUERY_SCALAR) ** -0.5,
    )
    reader.refuse_unread()
    return spec


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name."""
    return {name: _hf_name(name, hf_name) for name, hf_name in decoder_tensor_names(spec).items()}


def _hf_name(canonical: str, hf_name: str) -> str:
    module = canonical.split(".")[-2]
    return hf_name.replace(module, _HF_NORMS.get(module, module))


def _windows(reader: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """Every `sliding_window_pattern`-th layer sees everything, unless `layer_types` says which ones do."""
    off = reader.has("sliding_window") and reader.raw("sliding_window") is None
    window = None if off else reader.size("sliding_window", DEFAULT_SLIDING_WINDOW)
    pattern = reader.size("sliding_window_pattern", DEFAULT_PATTERN)
    types = [FULL_ATTENTION if (i + 1) % pattern == 0 else SLIDING_ATTENTION for i in range(num_layers)]
    return read_layer_windows(reader, types, window)


def _ropes(reader: ConfigReader) -> tuple[RopeSpec, RopeSpec]:
    """RoPE of the full and of the sliding layers: in `rope_parameters` by layer type, or in older configs as
    `rope_theta`, `rope_scaling` (full layers only) and `rope_local_base_freq`."""
    by_type, scaling = reader.raw("rope_parameters", {}), reader.raw("rope_scaling", {})
    if not isinstance(by_type, Mapping) or not set(by_type) <= {FULL_ATTENTION, SLIDING_ATTENTION}:
        raise reader.refused("rope_parameters", by_type, f"settings by {FULL_ATTENTION} and {SLIDING_ATTENTION}")
    for key, value in (("rope_scaling", scaling), *by_type.items()):
        if not isinstance(value, Mapping | None):
            raise reader.refused(key, value, "an object")
    theta = reader.number("rope_theta", DEFAULT_THETA)
    local_theta = reader.number("rope_local_base_freq", DEFAULT_LOCAL_THETA)
    full = {"rope_theta": theta, **(by_type.get(FULL_ATTENTION) or {}), **scaling}
    return _rope(reader, full), _rope(reader, {"rope_theta": local_theta, **(by_type.get(SLIDING_ATTENTION) or {})})


def _rope(reader: ConfigReader, parameters: Mapping[str, Any]) -> RopeSpec:
    inner = ConfigReader({"rope_parameters": parameters}, reader.model_type)
    rope = read_rope(inner, max_position_embeddings=reader.size("max_position_embeddings"))
    if rope.kind == "dynamic":
        raise reader.refused("rope_type", rope.kind, "default, linear or llama3")
    return rope
