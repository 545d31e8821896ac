"""Llama and everything that ships as `llama` (SmolLM2, TinyLlama, Llama 2/3): arXiv 2302.13971, 2407.21783."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glass_core.models.config_reader import ConfigReader
from glass_core.models.decoder import decoder_tensor_names, read_decoder
from glass_core.models.spec import ModelSpec


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Raises UnsupportedModelError naming the first key that is not implemented."""
    reader = ConfigReader(config, "llama")
    attention_bias = reader.flag("attention_bias", default=False)
    spec = replace(
        read_decoder(reader),
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        mlp_bias=reader.flag("mlp_bias", default=False),
    )
    reader.refuse_unread()
    return spec


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Canonical name → HF checkpoint name."""
    return decoder_tensor_names(spec)
