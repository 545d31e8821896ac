"""I-GLASS (arXiv 2508.14302): the prompt's activations, fused with each neuron's impact on the model's loss.

Impact is a first-order Taylor estimate of what dropping the neuron costs, |z * dloss/dz|, over a calibration corpus.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selectors.base import LocalNorm, ModelEvidence, Need, PromptEvidence, local_scores


@dataclass(frozen=True, slots=True)
class IGlass:
    """`local` chooses the local variant, `impact` the mean: of absolute values (our default) or root-mean-square."""

    local: LocalNorm = "l1"
    impact: Literal["abs", "rms"] = "abs"

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOCAL, Need.IMPACT})
    fuses: ClassVar[bool] = True

    def prompt_scores(self, prompt: PromptEvidence) -> FloatArray:
        return local_scores(prompt.local, self.local)

    def model_scores(self, model: ModelEvidence) -> FloatArray | None:
        statistics = model.artifact()
        return statistics.impact_abs if self.impact == "abs" else statistics.impact_rms


SELECTOR = IGlass()
