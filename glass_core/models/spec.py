"""ModelSpec: everything a runner needs to know about a decoder-only transformer, and the canonical tensor names.

A family file (`llama.py`, `qwen3.py`, …) turns an HF config into a ModelSpec and says which checkpoint name holds each
canonical tensor. Canonical names (HF's, without the `model.` prefix):

    embed_tokens.weight                                    (vocab_size, hidden_size)
    layers.{i}.input_layernorm.weight                      (hidden_size,)
    layers.{i}.self_attn.{q,k,v}_proj.weight [.bias]       (num_heads * head_dim, hidden_size)
    layers.{i}.self_attn.{q,k}_norm.weight                 (head_dim,)            if qk_norm
    layers.{i}.self_attn.o_proj.weight [.bias]             (hidden_size, num_attention_heads * head_dim)
    layers.{i}.attention_output_norm.weight                (hidden_size,)         if sandwich_norms
    layers.{i}.post_attention_layernorm.weight             (hidden_size,), always the norm before the FFN
    layers.{i}.mlp.{gate,up}_proj.weight [.bias]           (intermediate_size, hidden_size)
    layers.{i}.mlp.down_proj.weight [.bias]                (hidden_size, intermediate_size)
    layers.{i}.ffn_output_norm.weight                      (hidden_size,)         if sandwich_norms
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
    """Sizes and features of one model. `sliding_window[i]` is layer i's attention span in tokens, None = full.

    `local_rope` is that of the layers with a window, None = `rope` for all. `norm_offset` is what a norm adds to its
    stored weights. `sandwich_norms`: the outputs of attention and FFN are normalized before they join the residual
    stream. `embedding_scale` multiplies the embeddings, `attention_scale` (None = 1 / sqrt(head_dim)) the scores.
    """

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
    sandwich_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    local_rope: RopeSpec | None = None

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def score_scale(self) -> float:
        """What q k^T is multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The distinct rotary embeddings; `rope_index` says which one a layer uses."""
        return (self.rope,) if self.local_rope is None else (self.rope, self.local_rope)

    def rope_index(self, layer: int) -> int:
        """Index into `ropes`."""
        return int(self.local_rope is not None and self.sliding_window[layer] is not None)
