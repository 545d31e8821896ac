"""The gated FFN on any set of neurons: z = act(gate x) * (up x), output z down.

The dense block and a pruned view are the same `FfnWeights` with different numbers of neurons, so both run this code.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from glass_core.models.spec import Activation
from glass_core.runners.torch_runner.weights import FfnWeights

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def pre_gate_and_up(weights: FfnWeights, x: Tensor) -> tuple[Tensor, Tensor]:
    """gate x, before its activation, and u = up x, each (n, k), of x (n, hidden)."""
    pre_gate, up = functional.linear(x, weights.gate_up, weights.gate_up_bias).chunk(2, dim=-1)
    return pre_gate, up


def gate_and_up(weights: FfnWeights, activation: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    """g = act(gate x) and u = up x, each (n, k), of x (n, hidden)."""
    pre_gate, up = pre_gate_and_up(weights, x)
    return ACTIVATIONS[activation](pre_gate), up


def ffn_activation(weights: FfnWeights, activation: Activation, x: Tensor) -> Tensor:
    """z (n, k) of x (n, hidden)."""
    gate, up = gate_and_up(weights, activation, x)
    return gate * up


def ffn_output(weights: FfnWeights, z: Tensor) -> Tensor:
    """Block output (n, hidden) of z (n, k)."""
    if weights.down_bias is None:
        return torch.mm(z, weights.down_proj)
    return torch.addmm(weights.down_bias, z, weights.down_proj)
