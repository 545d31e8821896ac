"""Qwen2 and Qwen2.5: biases on q, k, v; an optional sliding window in the upper layers (arXiv 2407.10671)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glass_core.models.config_reader import ConfigReader
from glass_core.models.decoder import decoder_tensor_names, read_decoder, read_sliding_window
from glass_core.models.spec import ModelSpec

DEFAULT_KV_HEADS = 32


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Raises UnsupportedModelError naming the first key that is not implemented."""
    reader = ConfigReader(config, "qwen2")
    spec = read_decoder(reader, default_kv_heads=DEFAULT_KV_HEADS)
    window = read_sliding_window(reader, spec.num_layers)
    reader.refuse_unread()
    return replace(spec, sliding_window=window, qkv_bias=True)


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name."""
    return decoder_tensor_names(spec)
