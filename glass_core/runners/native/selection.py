"""Choosing neurons in the extension: what `glass_core/sparsity/choice.py` defines, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from glass_core.runners.native.types import NativeModel
from glass_core.sparsity.choice import Choice, choose_neurons
from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.ranking import Ranks, rank_weights


@dataclass(frozen=True, slots=True)
class NativeChooser:
    """A NeuronChooser on the model's threads: use it between steps only. `open_model` gives the model or says why there
    is none any more."""

    open_model: Callable[[], NativeModel]

    def __call__(
        self,
        prompt_scores: FloatArray | None,
        model_ranks: Ranks | None,
        lambdas: Sequence[float],
        budgets: Sequence[int],
        reference: Ranks | None,
    ) -> Choice:
        """As the reference. What the extension does not take goes there, to be refused in the same words."""
        model, weights = self.open_model(), rank_weights(tuple(lambdas))
        try:
            chosen = model.choose_neurons(prompt_scores, model_ranks, weights, budgets, reference)
        except (TypeError, ValueError):
            chosen = None
        if chosen is None:
            return choose_neurons(prompt_scores, model_ranks, lambdas, budgets, reference)
        neurons, num_agreed = chosen
        layers = tuple(neurons[start:end] for start, end in pairwise(accumulate(budgets, initial=0)))
        return Choice(layers, None if reference is None else num_agreed / len(neurons))
