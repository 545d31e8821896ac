"""ModelSpec: everything a runner needs to know about a decoder-only transformer, and the canonical tensor names.

A family file (`llama.py`, `qwen3.py`, …) turns an HF config into a ModelSpec and says which checkpoint name holds each
canonical tensor. Canonical names (HF's, without the `model.` prefix):

    embed_tokens.weight                                    (vocab_size, hidden_size)
    layers.{i}.input_layernorm.weight                      (hidden_size,)
    layers.{i}.self_attn.{q,k,v}_proj.weight [.bias]       (num_heads * head_dim, hidden_size)
    layers.{i}.self_attn.{q,k}_norm.weight                 (head_dim,)            if qk_norm
    layers.{i}.self_attn.o_proj.weight [.bias]             (hidden_size, num_attention_heads * head_dim)
    layers.{i}.post_attention_layernorm.weight             (hidden_size,)
    layers.{i}.mlp.{gate,up}_proj.weight [.bias]           (intermediate_size, hidden_size)
    layers.{i}.mlp.down_proj.weight [.bias]                (hidden_size, intermediate_size)
    norm.weight                                            (hidden_size,)
    lm_head.weight                                         (vocab_size, hidden_size)  unless tied
"""

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv 2104.09864) and its scaling.

    `linear` divides positions by `factor` (arXiv 2306.15595); `dynamic` is NTK-aware scaling by the current length;
    `llama3` interpolates low frequencies only (Llama 3.1's config keys of the same names).
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and features of one model. `sliding_window[i]` is layer i's attention span in tokens, None = full."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    rope: RopeSpec
    sliding_window: tuple[int | None, ...]
    activation: Activation = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim
