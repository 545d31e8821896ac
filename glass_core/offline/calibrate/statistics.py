"""Per-neuron statistics of a corpus: one forward and one backward pass per sequence, summed over tokens.

Impact is the first-order Taylor estimate of what removing a neuron does to the loss (GLASS, arXiv 2508.14302; the
criterion itself: arXiv 1906.10771), |z * dl/dz|, with l the summed next-token cross-entropy of the counted tokens.

Which tokens count: those after the template prefix. E z, E z^2, E|u|, E g^2 and E (u act')^2 skip position 0 as well:
the first token of a sequence carries "massive activations" (arXiv 2402.17762), thousands of times the usual size, which
would be all that a plain mean sees. The normalized l1 and l2 statistics are immune: every token weighs the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.instrumented import LayerTrace, TracingFfn, final_states
from glass_core.runners.torch_runner.ffn import ACTIVATIONS
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.statistics import normalize_tokens

Float32Array = npt.NDArray[np.float32]

FORMULAS: Mapping[str, str] = {
    "activation_l1": "mean over counted tokens of |z[j]| / ||z||_2",
    "activation_l2": "sqrt of the sum over counted tokens of (z[j] / ||z||_2)^2",
    "impact_abs": "mean over counted tokens of |z[j] * dl/dz[j]|, l = their summed cross-entropy",
    "impact_rms": "root-mean-square over counted tokens of z[j] * dl/dz[j]",
    "mean_abs_up": "mean of |u[j]| over counted tokens but position 0",
    "gate_rms": "root-mean-square of act(g)[j] over counted tokens but position 0",
    "gate_slope_rms": "root-mean-square of u[j] * act'(g)[j] over counted tokens but position 0",
    "mean_z": "mean of z[j] over counted tokens but position 0 (massive activations)",
    "mean_square_z": "mean of z[j]^2 over counted tokens but position 0 (massive activations)",
    "down_norm": "l2 norm of down_proj[:, j]",
    "refinement": (
        "thresholds on |x[i]| * inputs[i] and |z[j]| * down[j], with down[j] = down_norm[j] and "
        "inputs[i]^2 = hidden_size / (2 m) * sum over j of down_norm[j]^2 * ((up_proj[j, i] * gate_rms[j])^2 + "
        "(gate_proj[j, i] * gate_slope_rms[j])^2), under which the decoded tokens of the refinement sequences keep "
        "their layers' shares, the layers below pruned alike"
    ),
    "sensitivity": (
        "mean over counted tokens but position 0 of held-out sequences of KL(dense || this layer alone, "
        "on these tokens, pruned to density 0.5 by activation_l1)"
    ),
}
COUNTED_SUMS = ("abs_normalized", "square_normalized", "abs_impact", "square_impact")
MOMENT_SUMS = ("abs_up", "square_gate", "square_gate_slope", "z", "square_z")


@dataclass(frozen=True, slots=True, eq=False)
class CorpusSums:
    """Sums over tokens, float64 (num_layers, intermediate_size) by name, and over how many tokens they run."""

    sums: Mapping[str, npt.NDArray[np.float64]]
    num_counted: int
    num_moments: int

    def means(self) -> dict[str, Float32Array]:
        """The artifact's per-neuron tensors by name."""
        s, n, k = self.sums, self.num_counted, self.num_moments
        values = {
            "activation_l1": s["abs_normalized"] / n,
            "activation_l2": np.sqrt(s["square_normalized"]),
            "impact_abs": s["abs_impact"] / n,
            "impact_rms": np.sqrt(s["square_impact"] / n),
            "mean_abs_up": s["abs_up"] / k,
            "gate_rms": np.sqrt(s["square_gate"] / k),
            "gate_slope_rms": np.sqrt(s["square_gate_slope"] / k),
            "mean_z": s["z"] / k,
            "mean_square_z": s["square_z"] / k,
        }
        return {name: value.astype(np.float32) for name, value in values.items()}


def measure_sequence(model: TorchModel, sequence: CorpusSequence) -> dict[str, Float32Array]:
    """Token sums of one sequence, (num_layers, intermediate_size) each, named as in COUNTED_SUMS and MOMENT_SUMS."""
    token_ids = torch.tensor(sequence.token_ids, device=model.device)
    ffn = TracingFfn(model)
    logits = model.logits(final_states(model, token_ids, ffn))
    loss = next_token_loss(logits, token_ids, sequence.first_after_start)
    gradients = torch.autograd.grad(loss, [trace.z for trace in ffn.traces])
    with torch.no_grad():
        activation = ACTIVATIONS[model.spec.activation]
        layers = [
            _layer_sums(trace, gradient, activation, sequence)
            for trace, gradient in zip(ffn.traces, gradients, strict=True)
        ]
        return {name: torch.stack([sums[name] for sums in layers]).cpu().numpy() for name in layers[0]}


def next_token_loss(logits: Tensor, token_ids: Tensor, first: int) -> Tensor:
    """Summed cross-entropy of tokens `first` >= 1 and later; logits (n, vocab), token_ids (n,)."""
    return functional.cross_entropy(logits[first - 1 : -1], token_ids[first:], reduction="sum")


def add_up(partials: Sequence[Mapping[str, Float32Array]], corpus: Sequence[CorpusSequence]) -> CorpusSums:
    """Sums over all sequences, in their order and in float64, so that a resumed run gives the same bits."""
    sums: dict[str, npt.NDArray[np.float64]] = {
        name: np.add.reduce([partial[name] for partial in partials], axis=0, dtype=np.float64)
        for name in COUNTED_SUMS + MOMENT_SUMS
    }
    num_moments = sum(len(sequence.token_ids) - sequence.first_after_start for sequence in corpus)
    return CorpusSums(sums, sum(sequence.num_counted for sequence in corpus), num_moments)


def down_norms(model: TorchModel) -> Float32Array:
    """||down_proj[:, j]||_2, (num_layers, intermediate_size)."""
    norms = [torch.linalg.vector_norm(layer.down_proj.float(), dim=1) for layer in model.layers]
    result: npt.NDArray[Any] = torch.stack(norms).cpu().numpy()
    return result


def activation_slopes(activation: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Derivative of an elementwise `activation` at each of `values` (any shape), differentiated automatically."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(activation(leaf).sum(), leaf)
    return slopes


def _layer_sums(
    trace: LayerTrace, gradient: Tensor, activation: Callable[[Tensor], Tensor], sequence: CorpusSequence
) -> dict[str, Tensor]:
    z, counted = trace.z, slice(sequence.num_skipped, None)
    normalized = normalize_tokens(z[counted])
    impact = (z * gradient)[counted]
    moments = slice(sequence.first_after_start, None)
    gate_slopes = trace.up[moments] * activation_slopes(activation, trace.pre_gate[moments])
    return {
        "abs_normalized": normalized.abs().sum(dim=0),
        "square_normalized": normalized.square().sum(dim=0),
        "abs_impact": impact.abs().sum(dim=0),
        "square_impact": impact.square().sum(dim=0),
        "abs_up": trace.up[moments].abs().sum(dim=0),
        "square_gate": trace.gate[moments].square().sum(dim=0),
        "square_gate_slope": gate_slopes.square().sum(dim=0),
        "z": z[moments].sum(dim=0),
        "square_z": z[moments].square().sum(dim=0),
    }
