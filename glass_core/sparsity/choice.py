"""Choosing neurons from what speaks for them: rank the prompt's side, fuse it with the model's ranks, keep the best.

`choose_neurons` is the definition. A runner may bring a faster `NeuronChooser`, which gives the same in every bit and
refuses the same: selection stands between a prompt and its first sparse token.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.plan import NeuronIndices
from glass_core.sparsity.ranking import Ranks, Scores, fuse, ranks, share_within_top_k, top_k


class Choice(NamedTuple):
    """Neurons kept in each layer: int32, ascending, read-only, slices of one array. `share_within_reference`: the share
    of them that a reference ranking would keep too, at the same budgets; None without one."""

    neurons: tuple[NeuronIndices, ...]
    share_within_reference: float | None


class NeuronChooser(Protocol):
    """What `choose_neurons` is."""

    def __call__(
        self,
        prompt_scores: FloatArray | None,
        model_ranks: Ranks | None,
        lambdas: Sequence[float],
        budgets: Sequence[int],
        reference: Ranks | None,
    ) -> Choice: ...


def choose_neurons(
    prompt_scores: FloatArray | None,
    model_ranks: Ranks | None,
    lambdas: Sequence[float],
    budgets: Sequence[int],
    reference: Ranks | None,
) -> Choice:
    """The `budgets[l]` best neurons of each layer l, by one side or by both, fused with the weight `lambdas[l]`.

    Arrays are (num_layers, m), scores float32, larger = more important. Raises UnrankableError for scores without a
    rank, ValueError for budgets outside [0, m].
    """
    neurons = top_k(_scores(prompt_scores, model_ranks, lambdas), budgets)
    return Choice(neurons, None if reference is None else share_within_top_k(neurons, reference))


def _scores(prompt_scores: FloatArray | None, model_ranks: Ranks | None, lambdas: Sequence[float]) -> Scores:
    """Ranks, or fused ranks, of every neuron (num_layers, m)."""
    if prompt_scores is None:
        assert model_ranks is not None, "neither the prompt nor the model says anything"
        return model_ranks
    prompt_ranks = ranks(prompt_scores)
    return prompt_ranks if model_ranks is None else fuse(prompt_ranks, model_ranks, lambdas)
