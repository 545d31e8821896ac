"""Packed weight views: the kept neurons of a plan, gathered into contiguous weights for a request's decode loop.

These views copy, hence *packed*: their bytes are accounted and the engine admits requests against them. A layer whose
budget is the whole layer is not copied but shared with the model, and counts zero bytes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glass_core.models.spec import ModelSpec
from glass_core.runners.torch_runner.ffn import ffn_activation, ffn_output
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.weights import FfnWeights
from glass_core.sparsity.plan import NeuronIndices, SparsityPlan


class PackedViews:
    """The FFN of every layer restricted to a plan's neurons. `views.ffn` is an `Ffn`."""

    def __init__(self, model: TorchModel, plan: SparsityPlan) -> None:
        self.plan = plan
        self.num_bytes = packed_bytes(model.spec, plan.budgets, model.dtype)
        self._activation = model.spec.activation
        self._layers = tuple(
            pack(layer.ffn, neurons) for layer, neurons in zip(model.layers, plan.neurons, strict=True)
        )

    def weights(self, layer: int) -> FfnWeights:
        """The kept neurons' weights."""
        return self._layers[layer]

    def ffn(self, layer: int, x: Tensor) -> Tensor:
        """Pruned FFN output (n, hidden) of x (n, hidden)."""
        weights = self._layers[layer]
        return ffn_output(weights, ffn_activation(weights, self._activation, x))


def pack(ffn: FfnWeights, neurons: NeuronIndices) -> FfnWeights:
    """Rows of the kept neurons (k,) int32 in ascending order; the block itself when all are kept."""
    if len(neurons) == ffn.num_neurons:
        return ffn
    rows = torch.tensor(neurons, device=ffn.down_proj.device)
    gate_and_up = torch.cat((rows, rows + ffn.num_neurons))
    return FfnWeights(
        gate_up=ffn.gate_up.index_select(0, gate_and_up),
        down_proj=ffn.down_proj.index_select(0, rows),
        gate_up_bias=None if ffn.gate_up_bias is None else ffn.gate_up_bias.index_select(0, gate_and_up),
        down_bias=ffn.down_bias,
    )


def packed_bytes(spec: ModelSpec, budgets: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes PackedViews of a plan with these budgets (neurons per layer) copies."""
    num_copied = sum(budget for budget in budgets if budget != spec.intermediate_size)
    per_neuron = 3 * spec.hidden_size + (2 if spec.mlp_bias else 0)
    return num_copied * per_neuron * dtype.itemsize


class ViewCache:
    """The packed views of running sequences, built when a plan is first seen and kept until released."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self._views: dict[str, PackedViews] = {}

    @property
    def num_bytes(self) -> int:
        return sum(views.num_bytes for views in self._views.values())

    def get(self, sequence_id: str, plan: SparsityPlan) -> PackedViews:
        """The sequence's views, rebuilt when it comes with another plan."""
        views = self._views.get(sequence_id)
        if views is None or views.plan is not plan:
            # drop the old ones first: both at once could exceed what admission granted
            self.release(sequence_id)
            views = self._views[sequence_id] = PackedViews(self._model, plan)
        return views

    def release(self, sequence_id: str) -> None:
        self._views.pop(sequence_id, None)
