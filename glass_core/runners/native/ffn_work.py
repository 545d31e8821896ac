"""How much FFN work a step over given neurons is, from a weight image's real sizes.

One place for the count that the extension makes of what it executed, the count of what a plan alone would take, and
the bench's rooflines. Bytes are those of the neurons' up rows and records, and of the scale vectors of every group of
32 neurons that has one of them, padding included. Without refinement up_proj's columns are not read.
"""

from dataclasses import dataclass

import numpy as np

from glass_core.runners.native.image import ImageHeader
from glass_core.sparsity.flops import ffn_weights
from glass_core.sparsity.plan import NeuronIndices, SparsityPlan

DOWN_GROUP = 32  # neurons that share one row of down_proj's scales


@dataclass(frozen=True, slots=True)
class FfnWork:
    """Weights multiplied, per token or by all tokens, and weight bytes read for all tokens together; both summed over
    the layers."""

    num_weights: int
    num_bytes: int


def dense_work(header: ImageHeader) -> FfnWork:
    """Of a step that needs every neuron."""
    spec = header.spec
    num_bytes = sum(layer_bytes(header, layer, None) for layer in range(spec.num_layers))
    return FfnWork(ffn_weights(spec, spec.num_layers * spec.intermediate_size), num_bytes)


def plan_work(header: ImageHeader, plan: SparsityPlan) -> FfnWork:
    """Of a step that needs exactly the neurons of this plan, without its refinement."""
    num_bytes = sum(layer_bytes(header, layer, neurons) for layer, neurons in enumerate(plan.neurons))
    return FfnWork(ffn_weights(header.spec, sum(plan.budgets)), num_bytes)


def layer_bytes(header: ImageHeader, layer: int, neurons: NeuronIndices | None) -> int:
    """Weight bytes of these neurons of one layer, ascending; None = all of them."""
    per_neuron = [header.tensors[f"layers.{layer}.{name}"] for name in ("up", "neurons")]
    scales = header.tensors.get(f"layers.{layer}.down_scales")
    per_group = [] if scales is None else [scales]
    if neurons is None:
        return sum(tensor.num_bytes for tensor in per_neuron + per_group)
    num_groups = _num_groups(neurons)
    return len(neurons) * sum(t.row_bytes for t in per_neuron) + num_groups * sum(t.row_bytes for t in per_group)


def _num_groups(neurons: NeuronIndices) -> int:
    groups = neurons // DOWN_GROUP
    return int(np.count_nonzero(groups[1:] != groups[:-1])) + min(len(groups), 1)
