"""Layer sensitivity: how far the model's predictions move when one layer alone is pruned to density 0.5.

Pruned are the tokens after the template prefix, and never position 0: a server prefills densely, and pruning the first
token would destroy the massive activations that later tokens use as attention sink (arXiv 2402.17762), which no real
request suffers. Everything below the pruned layer is what the dense pass computed, so its attention and FFN outputs
are replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.settings import SENSITIVITY_DENSITY
from glass_core.offline.calibrate.statistics import Float32Array
from glass_core.offline.divergence import token_kl
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.ffn import ffn_activation, ffn_output
from glass_core.runners.torch_runner.model import Attention, Ffn, TorchModel
from glass_core.runners.torch_runner.views import pack
from glass_core.sparsity.plan import NeuronIndices
from glass_core.sparsity.ranking import ranks, top_k


@dataclass(frozen=True, slots=True, eq=False)
class DensePass:
    """What the dense model computed on one held-out sequence.

    `attention[l]` (n, q_size) and `ffn[l]` (n, hidden) are layer outputs, `log_probs` (n - first_pruned, vocab) the
    predictions at the tokens that will be pruned.
    """

    sequence: CorpusSequence
    attention: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    log_probs: Tensor

    @property
    def first_pruned(self) -> int:
        return self.sequence.first_after_start


def better_half(activation: Float32Array) -> tuple[NeuronIndices, ...]:
    """The half of every layer's neurons that the global ranking keeps; activation (num_layers, m)."""
    num_layers, num_neurons = activation.shape
    return top_k(ranks(activation), [max(round(SENSITIVITY_DENSITY * num_neurons), 1)] * num_layers)


@torch.no_grad()
def run_dense(model: TorchModel, sequence: CorpusSequence) -> DensePass:
    """The dense pass over a whole sequence, everything kept."""
    cache = SequenceCache(model.spec)
    attention_outputs: list[Tensor] = []
    ffn_outputs: list[Tensor] = []

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention_outputs.append(cache(layer, q, k, v))
        return attention_outputs[-1]

    def ffn(layer: int, x: Tensor) -> Tensor:
        ffn_outputs.append(model.dense_ffn(layer, x))
        return ffn_outputs[-1]

    log_probs = _log_probs(model, sequence, attention, ffn)
    return DensePass(sequence, tuple(attention_outputs), tuple(ffn_outputs), log_probs)


@torch.no_grad()
def layer_sensitivity(model: TorchModel, passes: Sequence[DensePass], pruned: int, neurons: NeuronIndices) -> float:
    """Mean KL(dense || layer `pruned` keeps only `neurons`) over the pruned tokens of all passes, in nats."""
    weights = pack(model.layers[pruned].ffn, neurons)

    def pruned_ffn(x: Tensor) -> Tensor:
        return ffn_output(weights, ffn_activation(weights, model.spec.activation, x))

    total = 0.0
    for dense in passes:
        cache = SequenceCache(model.spec)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor, dense: DensePass = dense) -> Tensor:
            # the pruned layer's own attention still sees what the dense one saw
            return dense.attention[layer] if layer <= pruned else cache(layer, q, k, v)  # noqa: B023

        def ffn(layer: int, x: Tensor, dense: DensePass = dense) -> Tensor:
            if layer < pruned:
                return dense.ffn[layer]
            if layer > pruned:
                return model.dense_ffn(layer, x)
            return torch.cat((dense.ffn[layer][: dense.first_pruned], pruned_ffn(x[dense.first_pruned :])))

        total += float(token_kl(dense.log_probs, _log_probs(model, dense.sequence, attention, ffn)).sum())
    # KL is never negative; rounding may leave it a hair below zero
    return max(total, 0.0) / sum(len(dense.log_probs) for dense in passes)


def _log_probs(model: TorchModel, sequence: CorpusSequence, attention: Attention, ffn: Ffn) -> Tensor:
    """Log-probabilities of the next token at every position that is pruned, (n - first_pruned, vocab)."""
    token_ids = torch.tensor(sequence.token_ids, device=model.device)
    positions = torch.arange(len(token_ids), device=model.device)
    hidden = model.forward(token_ids, positions, attention=attention, ffn=ffn)
    return torch.log_softmax(model.logits(hidden[sequence.first_after_start :]), dim=-1)
