"""TorchModel: the forward pass of a ModelSpec over a flat list of tokens, with attention and FFN injected.

The model does not know sequences, caches or plans: `attention` decides which keys a token sees, `ffn` which neurons
run. The serving runner injects paged attention and per-plan FFNs; offline tools inject a SequenceCache and whatever
they want to measure. Nothing is done in place and grad mode is the caller's, so gradients with respect to anything the
callables return can be taken.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from glass_core.checkpoint.prepared import open_prepared
from glass_core.models.spec import ModelSpec
from glass_core.runners.torch_runner import ffn as ffn_block
from glass_core.runners.torch_runner.rope import RotaryEmbedding, rotate
from glass_core.runners.torch_runner.weights import LayerWeights, ModelWeights, load_weights

# (layer, q (n, heads, head_dim), k (n, kv_heads, head_dim), v (n, kv_heads, head_dim)) -> (n, heads * head_dim)
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# (layer, x (n, hidden)) -> (n, hidden)
Ffn = Callable[[int, Tensor], Tensor]


class TorchModel:
    """Weights of one model and its forward pass."""

    def __init__(self, spec: ModelSpec, fingerprint: str, weights: ModelWeights) -> None:
        self.spec = spec
        self.fingerprint = fingerprint
        self.weights = weights
        self.dtype = weights.embed_tokens.dtype
        self.device = weights.embed_tokens.device
        self._ropes = tuple(RotaryEmbedding(spec, rope, str(self.device)) for rope in spec.ropes)
        # rounded as the weights are, because HF multiplies in their dtype
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=self.dtype, device=self.device)

    @classmethod
    def load(cls, model_dir: Path, *, dtype: torch.dtype, device: str) -> Self:
        """Load a prepared checkpoint or a plain HF safetensors folder. Raises ModelError when it cannot be used."""
        checkpoint = open_prepared(model_dir)
        return cls(checkpoint.spec, checkpoint.fingerprint, load_weights(checkpoint, dtype, device))

    @property
    def layers(self) -> tuple[LayerWeights, ...]:
        return self.weights.layers

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        *,
        attention: Attention,
        ffn: Ffn,
        rope_lengths: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (n, hidden), of token_ids (n,) at positions (n,).

        `rope_lengths` (n,) is the sequence length each token is rotated for; only dynamic RoPE reads it, and None means
        the largest position + 1, as one call of HF does.
        """
        spec = self.spec
        hidden = functional.embedding(token_ids, self.weights.embed_tokens)
        if spec.embedding_scale != 1.0:
            hidden = hidden * self._embedding_scale
        tables = [rope.tables(positions, rope_lengths, self.dtype) for rope in self._ropes]
        for index, layer in enumerate(self.layers):
            normed = rms_norm(hidden, layer.input_norm, spec.norm_eps)
            q, k, v = self._project(layer, normed)
            cos, sin = tables[spec.rope_index(index)]
            mixed = attention(index, rotate(q, cos, sin), rotate(k, cos, sin), v)
            attended = functional.linear(mixed, layer.o_proj, layer.o_bias)
            hidden = hidden + self._joining(attended, layer.attention_output_norm)
            output = ffn(index, rms_norm(hidden, layer.post_attention_norm, spec.norm_eps))
            hidden = hidden + self._joining(output, layer.ffn_output_norm)
        return rms_norm(hidden, self.weights.norm, spec.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, vocab) float32 of final hidden states (n, hidden)."""
        return functional.linear(hidden, self.weights.lm_head).float()

    def ffn_activation(self, layer: int, x: Tensor) -> Tensor:
        """Dense z (n, intermediate) of one layer's FFN input x (n, hidden)."""
        return ffn_block.ffn_activation(self.layers[layer].ffn, self.spec.activation, x)

    def ffn_output(self, layer: int, z: Tensor) -> Tensor:
        """Dense FFN output (n, hidden) of z (n, intermediate)."""
        return ffn_block.ffn_output(self.layers[layer].ffn, z)

    def dense_ffn(self, layer: int, x: Tensor) -> Tensor:
        """The whole FFN: an `Ffn`."""
        return self.ffn_output(layer, self.ffn_activation(layer, x))

    def _joining(self, output: Tensor, norm: Tensor | None) -> Tensor:
        """What attention or FFN adds to the residual stream, (n, hidden)."""
        return output if norm is None else rms_norm(output, norm, self.spec.norm_eps)

    def _project(self, layer: LayerWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (n, heads, head_dim), k and v (n, kv_heads, head_dim), before rotation."""
        spec = self.spec
        joined = functional.linear(x, layer.qkv, layer.qkv_bias)
        q, k, v = torch.split(joined, [spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        q, k, v = (part.view(len(x), -1, spec.head_dim) for part in (q, k, v))
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, spec.norm_eps), rms_norm(k, layer.k_norm, spec.norm_eps)
        return q, k, v


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467); the mean in float32, the product in the weight's
    type, as HF rounds them."""
    full = x.float()
    scaled = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * scaled.to(weight.dtype)).to(x.dtype)
