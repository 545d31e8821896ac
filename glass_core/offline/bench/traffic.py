"""Bytes a decode step must read from memory: the denominator of every roofline argument.

Counted are weights and cached keys and values, each once per step for what is shared by the batch (attention
projections, norms, LM head, a dense FFN) and once per row for what is not (a row's own pruned FFN, its cache).
Activations and writes are not counted: they stay in the processor's caches.

Two counts: from the model's sizes and bytes per weight, for a runner that gathers each row's neurons; and from a weight
image's real sizes, scales and padding included, where no neuron is read twice in a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glass_core.models.spec import ModelSpec
from glass_core.runners.native.ffn_work import layer_bytes
from glass_core.runners.native.image import ImageHeader
from glass_core.sparsity.flops import ffn_bytes
from glass_core.sparsity.plan import NeuronIndices, SparsityPlan

_BF16_BYTES, _SCALE_BYTES = 2, 4
_SCALE_DIMS = 32  # dimensions of an int8 key or value that share a float32 scale


@dataclass(frozen=True, slots=True)
class StepTraffic:
    """Bytes of one decode step of the whole batch."""

    attention_bytes: int
    ffn_bytes: int
    head_bytes: int
    kv_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.attention_bytes + self.ffn_bytes + self.head_bytes + self.kv_bytes


def step_traffic(
    spec: ModelSpec, budgets: Sequence[Sequence[int] | None], *, num_keys: float, bytes_per_weight: int
) -> StepTraffic:
    """Bytes of a step with one row per entry of `budgets` (its neurons per layer, None = dense).

    `num_keys` is the mean number of keys a row attends to, its own token included.
    """
    dense = any(row is None for row in budgets)
    num_neurons = sum(sum(row) for row in budgets if row is not None)
    if dense:
        num_neurons += spec.num_layers * spec.intermediate_size
    return StepTraffic(
        attention_bytes=spec.num_layers * _attention_weights(spec) * bytes_per_weight,
        ffn_bytes=ffn_bytes(spec, num_neurons, bytes_per_weight),
        # final norm, LM head, and one embedding row per row of the batch
        head_bytes=(spec.vocab_size + 1 + len(budgets)) * spec.hidden_size * bytes_per_weight,
        kv_bytes=round(len(budgets) * 2 * spec.num_layers * num_keys * spec.kv_size * bytes_per_weight),
    )


def _attention_weights(spec: ModelSpec) -> int:
    """Weights of one layer outside its FFN: projections, biases and norms."""
    projections = spec.hidden_size * (spec.q_size + 2 * spec.kv_size) + spec.q_size * spec.hidden_size
    biases = (spec.q_size + 2 * spec.kv_size) * spec.qkv_bias + spec.hidden_size * spec.attention_output_bias
    norms = 2 * spec.hidden_size + 2 * spec.head_dim * spec.qk_norm
    return projections + biases + norms


def kv_position_bytes(spec: ModelSpec, kv_cache_dtype: str) -> int:
    """Bytes of one position's keys and values in all layers of the native runner's cache, int8 scales included."""
    if kv_cache_dtype == "int8":
        head_bytes = spec.head_dim + _SCALE_BYTES * -(-spec.head_dim // _SCALE_DIMS)
    else:
        head_bytes = spec.head_dim * _BF16_BYTES
    return 2 * spec.num_layers * spec.num_kv_heads * head_bytes


_FFN = (".gate_up", ".inputs", ".input_scales", ".input_units", ".down", ".down_scales")


def image_step_traffic(
    header: ImageHeader, plans: Sequence[SparsityPlan | None], *, num_keys: float, kv_cache_dtype: str
) -> StepTraffic:
    """Bytes the native runner reads in a step with one row per entry of `plans` (None = dense): the union of the rows'
    neurons once, and every other weight once. Refined plans count whole, by rows: what their cascades leave
    out is known only once they ran."""
    spec = header.spec
    layers = range(spec.num_layers)
    shared = sum(
        tensor.num_bytes
        for name, tensor in header.tensors.items()
        if name.startswith("layers.") and not name.endswith(_FFN)
    )
    embedding = header.tensors["embed_tokens"]
    head = embedding if spec.tie_word_embeddings else header.tensors["lm_head"]
    return StepTraffic(
        attention_bytes=shared,
        ffn_bytes=sum(layer_bytes(header, layer, _union(plans, layer)) for layer in layers),
        head_bytes=head.num_bytes + header.tensors["norm"].num_bytes + len(plans) * embedding.row_bytes,
        kv_bytes=round(len(plans) * num_keys * kv_position_bytes(spec, kv_cache_dtype)),
    )


def _union(plans: Sequence[SparsityPlan | None], layer: int) -> NeuronIndices | None:
    """Neurons any row keeps; None = all of them."""
    kept = [plan.neurons[layer] for plan in plans if plan is not None]
    if len(kept) < len(plans):
        return None
    return np.unique(np.concatenate(kept))
