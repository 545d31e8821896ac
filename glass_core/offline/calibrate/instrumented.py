"""The dense forward pass of one sequence, with every layer's FFN opened up for measuring."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.ffn import ACTIVATIONS, pre_gate_and_up
from glass_core.runners.torch_runner.model import TorchModel


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """One layer's input x (num_tokens, hidden_size), and h = gate_proj x, g = act(h), u = up_proj x and z = g * u, each
    (num_tokens, intermediate_size)."""

    x: Tensor
    pre_gate: Tensor
    gate: Tensor
    up: Tensor
    z: Tensor


class TracingFfn:
    """A dense `Ffn` that keeps each layer's x, h, g, u, z. With grad enabled, every x and z can be differentiated
    against."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self.traces: list[LayerTrace] = []

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not x.requires_grad:
            # weights are frozen, so the first layer's x is where the graph begins
            x.requires_grad_()
        pre_gate, up = pre_gate_and_up(self._model.layers[layer].ffn, x)
        gate = ACTIVATIONS[self._model.spec.activation](pre_gate)
        z = gate * up
        self.traces.append(LayerTrace(x, pre_gate, gate, up, z))
        return self._model.ffn_output(layer, z)


def final_states(model: TorchModel, token_ids: Tensor, ffn: TracingFfn) -> Tensor:
    """Hidden states (n, hidden) of a whole sequence (n,). Who wants predictions asks for `model.logits` of them: over a
    vocabulary of 262 144 those cost more than all layers."""
    positions = torch.arange(len(token_ids), device=token_ids.device)
    return model.forward(token_ids, positions, attention=SequenceCache(model.spec), ffn=ffn)
