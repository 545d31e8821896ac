"""Bytes a decode step must read from memory: the denominator of every roofline argument.

Counted are weights and cached keys and values, each once per step for what is shared by the batch (attention
projections, norms, LM head, a dense FFN) and once per row for what is not (a row's own pruned FFN, its cache).
Activations and writes are not counted: they stay in the processor's caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glass_core.models.spec import ModelSpec
from glass_core.sparsity.flops import ffn_bytes


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
