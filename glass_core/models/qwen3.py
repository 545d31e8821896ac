"""Qwen3 (dense): a norm on every query and key head, head_dim of its own (arXiv 2505.09388)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glass_core.models.config_reader import ConfigReader
from glass_core.models.decoder import decoder_tensor_names, read_decoder, read_sliding_window
from glass_core.models.spec import ModelSpec

DEFAULT_KV_HEADS = 32
DEFAULT_HEAD_DIM = 128


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Raises UnsupportedModelError naming the first key that is not implemented."""
    reader = ConfigReader(config, "qwen3")
    attention_bias = reader.flag("attention_bias", default=False)
    spec = read_decoder(reader, default_kv_heads=DEFAULT_KV_HEADS, default_head_dim=DEFAULT_HEAD_DIM)
    window = read_sliding_window(reader, spec.num_layers)
    reader.refuse_unread()
    return replace(
        spec, sliding_window=window, qkv_bias=attention_bias, attention_output_bias=attention_bias, qk_norm=True
    )


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name."""
    return decoder_tensor_names(spec)
