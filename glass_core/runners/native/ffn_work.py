"""How much FFN work a step over given neurons is, from a weight image's real sizes.

One place for the count that the extension makes of what it executed, the count of what a plan alone would take, and
the bench's rooflines. Bytes are those of the neurons' rows of gate and up and columns of down, and of the scale vectors
of every group of 32 neurons that has one of them, padding included. Without refinement gate and up are read by rows
only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glass_core.runners.native.image import ImageHeader, ImageTensor
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


@dataclass(frozen=True, slots=True)
class LayerReads:
    """Bytes that each layer reads for a neuron, and for a group of DOWN_GROUP neurons that has one of them, and weights
    that a neuron has."""

    weights_per_neuron: int
    per_neuron: tuple[int, ...]
    per_group: tuple[int, ...]

    @classmethod
    def of(cls, header: ImageHeader) -> "LayerReads":
        layers = range(header.spec.num_layers)
        per_neuron, per_group = zip(*(_bytes_per_neuron_and_group(header, layer) for layer in layers), strict=True)
        return cls(ffn_weights(header.spec, 1), per_neuron, per_group)


def plan_work(reads: LayerReads, plan: SparsityPlan, num_groups: Sequence[int]) -> FfnWork:
    """Of a step that needs exactly the neurons of this plan, of `num_groups[l]` groups in layer l, without its
    refinement."""
    budgets = plan.budgets
    num_bytes = sum(
        count * per_neuron + groups * per_group
        for count, groups, per_neuron, per_group in zip(
            budgets, num_groups, reads.per_neuron, reads.per_group, strict=True
        )
    )
    return FfnWork(reads.weights_per_neuron * sum(budgets), num_bytes)


def layer_bytes(header: ImageHeader, layer: int, neurons: NeuronIndices | None) -> int:
    """Weight bytes of these neurons of one layer, ascending; None = all of them."""
    if neurons is None:
        tensors = _tensors_per_neuron(header, layer) + _tensors_per_group(header, layer)
        return sum(tensor.num_bytes for tensor in tensors)
    per_neuron, per_group = _bytes_per_neuron_and_group(header, layer)
    return len(neurons) * per_neuron + _num_groups(neurons) * per_group


def _bytes_per_neuron_and_group(header: ImageHeader, layer: int) -> tuple[int, int]:
    of_neurons = sum(tensor.num_bytes for tensor in _tensors_per_neuron(header, layer))
    per_group = sum(tensor.row_bytes for tensor in _tensors_per_group(header, layer))
    return of_neurons // header.spec.intermediate_size, per_group


def _tensors_per_neuron(header: ImageHeader, layer: int) -> list[ImageTensor]:
    return [header.tensors[f"layers.{layer}.{name}"] for name in ("gate_up", "down")]


def _tensors_per_group(header: ImageHeader, layer: int) -> list[ImageTensor]:
    scales = header.tensors.get(f"layers.{layer}.down_scales")
    return [] if scales is None else [scales]


def _num_groups(neurons: NeuronIndices) -> int:
    groups = neurons // DOWN_GROUP
    return int(np.count_nonzero(groups[1:] != groups[:-1])) + min(len(groups), 1)
