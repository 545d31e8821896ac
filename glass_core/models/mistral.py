"""Mistral 7B and relatives: Llama plus one sliding window for all layers (arXiv 2310.06825)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glass_core.models.config_reader import ConfigReader
from glass_core.models.decoder import decoder_tensor_names, read_decoder
from glass_core.models.spec import ModelSpec

DEFAULT_KV_HEADS = 8
DEFAULT_SLIDING_WINDOW = 4096


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Raises UnsupportedModelError naming the first key that is not implemented.

    A null `sliding_window` means full attention, a missing one the family's default of 4096.
    """
    reader = ConfigReader(config, "mistral")
    spec = read_decoder(reader, default_kv_heads=DEFAULT_KV_HEADS)
    off = reader.has("sliding_window") and reader.raw("sliding_window") is None
    window = None if off else reader.size("sliding_window", DEFAULT_SLIDING_WINDOW)
    reader.refuse_unread()
    return replace(spec, sliding_window=(window,) * spec.num_layers)


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name."""
    return decoder_tensor_names(spec)
