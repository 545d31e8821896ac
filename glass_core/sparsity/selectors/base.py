"""What a selection method is: scores of up to two sides, what they need, and whether the sides are fused.

A method scores every neuron from the *prompt's* side (this request), the *model's* side (once per loaded model), or
both. `PlanSelector` turns scores into ranks, fuses two sides by lambda, and keeps the best of each layer. A method
file exports one instance as `SELECTOR`; the file's name is the method's public name, and finding the file registers it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from glass_core.sparsity.artifact import GlobalStatistics
from glass_core.sparsity.local_stats import FloatArray, LocalStatistics

LocalNorm = Literal["l1", "l2"]


class Need(Enum):
    """Statistics a method cannot work without."""

    LOCAL = "local"
    ACTIVATION = "activation"
    IMPACT = "impact"
    MAGNITUDE = "magnitude"


@dataclass(frozen=True, slots=True, eq=False)
class PromptEvidence:
    """What is known of one request when its prefill ends. `seed` is the request's (only `random` uses it)."""

    local: LocalStatistics
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class ModelEvidence:
    """What is known of the model. `magnitudes()` gives ||gate row|| * ||up row|| (num_layers, m); it may be slow."""

    statistics: GlobalStatistics | None
    magnitudes: Callable[[], FloatArray]

    @property
    def available(self) -> frozenset[Need]:
        """Needs that this model's evidence, together with any prompt, satisfies."""
        needs = {Need.LOCAL, Need.MAGNITUDE}
        if self.statistics is not None:
            needs.add(Need.ACTIVATION)
            if self.statistics.has_impact:
                needs.add(Need.IMPACT)
        return frozenset(needs)

    def artifact(self) -> GlobalStatistics:
        """The statistics, for methods that declare a need they satisfy."""
        assert self.statistics is not None, "a method used statistics it does not declare in `needs`"
        return self.statistics


class Selector(Protocol):
    """A selection method. Scores are (num_layers, m) float32, larger = more important; None = no opinion.

    At least one side has scores. When both have, they are fused by rank and the method is said to use lambda.
    The model's side is asked once and cached, so it must not depend on anything but its argument.
    """

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def fuses(self) -> bool:
        """Whether both sides have scores, so that lambda matters."""
        ...

    def prompt_scores(self, prompt: PromptEvidence) -> FloatArray | None: ...

    def model_scores(self, model: ModelEvidence) -> FloatArray | None: ...


class SelectorModule(Protocol):
    """What a method file exports."""

    SELECTOR: Selector


def local_scores(local: LocalStatistics, norm: LocalNorm) -> FloatArray:
    """The chosen variant of the local statistic, (num_layers, m)."""
    return local.l1() if norm == "l1" else local.l2()
