"""SparsityPlan: the neurons one request keeps, per layer, frozen for its life."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glass_core.sparsity.refinement import Refinement

NeuronIndices = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class SparsityPlan:
    """Chosen neurons of every layer. Identity is by object: one plan, one request.

    `neurons[l]` holds layer l's kept indices, int32, ascending, unique, in [0, intermediate_size).
    With a `refinement`, `neurons` is the pool, and each token reads only the part of it that its own scores call for.
    Frozen: a preempted request keeps its plan; only the views built from it are dropped and rebuilt.
    """

    method: str
    profile: str
    lambda_: float | None
    sparsity_requested: float
    intermediate_size: int
    neurons: tuple[NeuronIndices, ...]
    global_overlap: float | None = None
    refinement: Refinement | None = None

    @property
    def budgets(self) -> tuple[int, ...]:
        """Kept neurons per layer."""
        return tuple(len(indices) for indices in self.neurons)

    @property
    def sparsity(self) -> float:
        """Effective sparsity: 1 - kept / all, which differs from the requested one by rounding; refined: 1 - reads."""
        if self.refinement is not None:
            return 1.0 - self.refinement.reads
        num_neurons = len(self.neurons) * self.intermediate_size
        return (num_neurons - sum(self.budgets)) / num_neurons
