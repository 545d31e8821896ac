"""Weights of a model in the layout the torch runner computes with, read from safetensors.

The q, k and v projections are concatenated, gate and up too, and down_proj is kept neuron-major (its transpose,
contiguous): a neuron is then one row everywhere, and pruned views are row gathers. Everything else stays the
memory-mapped tensor of the file when neither dtype nor device differ.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glass_core.checkpoint.prepared import PreparedCheckpoint
from glass_core.errors import CheckpointError
from glass_core.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class FfnWeights:
    """One FFN block, or the kept part of it, with k neurons. Neuron j owns rows j and k + j of `gate_up`, row j of
    `down_proj`."""

    gate_up: Tensor  # (2k, hidden)
    down_proj: Tensor  # (k, hidden)
    gate_up_bias: Tensor | None = None  # (2k,)
    down_bias: Tensor | None = None  # (hidden,)

    @property
    def num_neurons(self) -> int:
        return len(self.down_proj)

    @property
    def num_parameters(self) -> int:
        return _count(self.gate_up, self.down_proj, self.gate_up_bias, self.down_bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: Tensor  # (hidden,)
    qkv: Tensor  # (q_size + 2 kv_size, hidden)
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # (head_dim,)
    k_norm: Tensor | None  # (head_dim,)
    o_proj: Tensor  # (hidden, q_size)
    o_bias: Tensor | None
    attention_output_norm: Tensor | None  # (hidden,)
    post_attention_norm: Tensor  # (hidden,), before the FFN
    ffn: FfnWeights
    ffn_output_norm: Tensor | None  # (hidden,)

    @property
    def gate_proj(self) -> Tensor:
        """(m, hidden), a view."""
        return self.ffn.gate_up[: self.ffn.num_neurons]

    @property
    def up_proj(self) -> Tensor:
        """(m, hidden), a view."""
        return self.ffn.gate_up[self.ffn.num_neurons :]

    @property
    def down_proj(self) -> Tensor:
        """(m, hidden): the transpose of HF's, one row per neuron."""
        return self.ffn.down_proj

    @property
    def num_parameters(self) -> int:
        norms = _count(self.input_norm, self.q_norm, self.k_norm, self.post_attention_norm)
        norms += _count(self.attention_output_norm, self.ffn_output_norm)
        return norms + _count(self.qkv, self.qkv_bias, self.o_proj, self.o_bias) + self.ffn.num_parameters


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights. `lm_head` is `embed_tokens` itself when the embeddings are tied."""

    embed_tokens: Tensor  # (vocab, hidden)
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # (hidden,)
    lm_head: Tensor  # (vocab, hidden)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones counted once."""
        tensors = {id(tensor): tensor for tensor in (self.embed_tokens, self.lm_head, self.norm)}
        return sum(tensor.numel() for tensor in tensors.values()) + sum(layer.num_parameters for layer in self.layers)


def _count(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor is not None)


def load_weights(checkpoint: PreparedCheckpoint, dtype: torch.dtype, device: str) -> ModelWeights:
    """Read every tensor of the checkpoint once.

    Raises CheckpointError when a file is unreadable or lacks a tensor the spec needs.
    """
    return _assemble(checkpoint.spec, _TensorReader(checkpoint, dtype, device))


class _TensorReader:
    """Canonical tensors by name, converted to the runner's dtype and device."""

    def __init__(self, checkpoint: PreparedCheckpoint, dtype: torch.dtype, device: str) -> None:
        self._refs = checkpoint.tensors
        self._norm_offset = checkpoint.spec.norm_offset
        self._dtype = dtype
        self._device = device
        self._files = {path: _open(path) for path in {ref.path for ref in checkpoint.tensors.values()}}

    def get(self, name: str) -> Tensor:
        ref = self._refs.get(name)
        if ref is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}, which the model's config asks for")
        try:
            tensor: Tensor = self._files[ref.path].get_tensor(ref.name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise CheckpointError(f"{ref.path}: cannot read tensor {ref.name!r}: {error}") from error
        return tensor.to(device=self._device, dtype=self._dtype)

    def norm(self, name: str) -> Tensor:
        """A norm's weights. Those with an offset stay float32 with the offset added, as HF computes them."""
        weight, offset = self.get(f"{name}.weight"), self._norm_offset
        return weight.float() + offset if offset else weight

    def joined(self, names: tuple[str, ...], kind: str) -> Tensor:
        """Several projections as one, rows after rows."""
        return torch.cat([self.get(f"{name}.{kind}") for name in names])


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def _assemble(spec: ModelSpec, reader: _TensorReader) -> ModelWeights:
    embed_tokens = reader.get("embed_tokens.weight")
    return ModelWeights(
        embed_tokens=embed_tokens,
        layers=tuple(_layer(spec, reader, f"layers.{index}.") for index in range(spec.num_layers)),
        norm=reader.norm("norm"),
        lm_head=embed_tokens if spec.tie_word_embeddings else reader.get("lm_head.weight"),
    )


def _layer(spec: ModelSpec, reader: _TensorReader, prefix: str) -> LayerWeights:
    attention = f"{prefix}self_attn."
    projections = (f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj")
    return LayerWeights(
        input_norm=reader.norm(f"{prefix}input_layernorm"),
        qkv=reader.joined(projections, "weight"),
        qkv_bias=reader.joined(projections, "bias") if spec.qkv_bias else None,
        q_norm=reader.norm(f"{attention}q_norm") if spec.qk_norm else None,
        k_norm=reader.norm(f"{attention}k_norm") if spec.qk_norm else None,
        o_proj=reader.get(f"{attention}o_proj.weight"),
        o_bias=reader.get(f"{attention}o_proj.bias") if spec.attention_output_bias else None,
        attention_output_norm=reader.norm(f"{prefix}attention_output_norm") if spec.sandwich_norms else None,
        post_attention_norm=reader.norm(f"{prefix}post_attention_layernorm"),
        ffn=_ffn(spec, reader, f"{prefix}mlp."),
        ffn_output_norm=reader.norm(f"{prefix}ffn_output_norm") if spec.sandwich_norms else None,
    )


def _ffn(spec: ModelSpec, reader: _TensorReader, prefix: str) -> FfnWeights:
    gate_up = (f"{prefix}gate_proj", f"{prefix}up_proj")
    return FfnWeights(
        gate_up=reader.joined(gate_up, "weight"),
        down_proj=reader.get(f"{prefix}down_proj.weight").t().contiguous(),
        gate_up_bias=reader.joined(gate_up, "bias") if spec.mlp_bias else None,
        down_bias=reader.get(f"{prefix}down_proj.bias") if spec.mlp_bias else None,
    )
