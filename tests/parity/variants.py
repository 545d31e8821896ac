"""The tiny random models every parity test runs on: each family, and each feature a config can switch on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny_models import VOCAB_SIZE, save_tiny_model, tiny_model

TRAINED_LENGTH = 24  # shorter than the prompts, so that scaled RoPE really scales


@dataclass(frozen=True)
class Variant:
    """A family and the HF config keys that make this variant; `name` is the test id."""

    name: str
    family: str
    overrides: dict[str, Any] = field(default_factory=dict)

    def hf_model(self) -> Any:
        """A fresh HF model: dynamic RoPE keeps state from call to call."""
        return tiny_model(self.family, **self.overrides)

    def save(self, directory: Path) -> Path:
        return save_tiny_model(directory, self.family, **self.overrides)


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


LLAMA3 = _rope(
    "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=TRAINED_LENGTH
)
DYNAMIC = {**_rope("dynamic", factor=3.0), "max_position_embeddings": TRAINED_LENGTH}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}

GEMMA_OLD_KEYS = {"rope_theta": 500.0, "rope_local_base_freq": 50.0, "sliding_window_pattern": 3, "layer_types": None}
GEMMA_SCALED = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    }
}

VARIANTS = (
    Variant("llama", "llama"),
    Variant("llama-untied", "llama", {"tie_word_embeddings": False}),
    Variant("llama-attention-bias", "llama", {"attention_bias": True}),
    Variant("llama-mlp-bias", "llama", {"mlp_bias": True}),
    Variant("llama-multi-head", "llama", {"num_key_value_heads": 4}),
    Variant("llama-multi-query", "llama", {"num_key_value_heads": 1}),
    Variant("llama-wide-heads", "llama", {"head_dim": 20}),
    Variant("llama-gelu", "llama", {"hidden_act": "gelu"}),
    Variant("llama-gelu-tanh", "llama", {"hidden_act": "gelu_pytorch_tanh"}),
    Variant("llama-rope-theta", "llama", _rope("default", rope_theta=500.0)),
    Variant("llama-rope-linear", "llama", _rope("linear", factor=2.5)),
    Variant("llama-rope-dynamic", "llama", DYNAMIC),
    Variant("llama-rope-llama3", "llama", LLAMA3),
    Variant("mistral", "mistral"),
    Variant("mistral-window", "mistral", {"sliding_window": 7}),
    Variant("mistral-window-2", "mistral", {"sliding_window": 2}),
    Variant("qwen2", "qwen2"),
    Variant("qwen2-window", "qwen2", {**QWEN_WINDOW, "tie_word_embeddings": False}),
    Variant("qwen2-rope-dynamic", "qwen2", DYNAMIC),
    Variant("qwen3", "qwen3"),
    Variant("qwen3-window-tied", "qwen3", {**QWEN_WINDOW, "tie_word_embeddings": True}),
    Variant("qwen3-attention-bias", "qwen3", {"attention_bias": True}),
    Variant("qwen3-rope-linear", "qwen3", _rope("linear", factor=2.0)),
    Variant("gemma3", "gemma3_text"),
    Variant("gemma3-old-keys", "gemma3_text", GEMMA_OLD_KEYS),
    Variant("gemma3-rope-linear", "gemma3_text", GEMMA_SCALED),
    Variant("gemma3-untied-bias", "gemma3_text", {"tie_word_embeddings": False, "attention_bias": True}),
    Variant("gemma3-window-2", "gemma3_text", {"sliding_window": 2}),
)
FEW_VARIANTS = tuple(
    variant for variant in VARIANTS if variant.name in ("gemma3", "llama", "mistral-window", "qwen2", "qwen3")
)


def random_tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, VOCAB_SIZE, (count,), generator=generator).tolist())


@torch.inference_mode()
def hf_logits(model: Any, tokens: tuple[int, ...]) -> Tensor:
    """Logits of all positions of one whole prompt, (n, vocab)."""
    logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@torch.inference_mode()
def hf_logits_in_calls(model: Any, calls: list[tuple[int, ...]]) -> Tensor:
    """Logits of all positions, fed call by call through HF's own cache, (n, vocab)."""
    cache, parts = None, []
    for tokens in calls:
        output = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits[0])
    return torch.cat(parts)
