"""A-GLASS (arXiv 2508.14302): the prompt's activations, fused with the activations of a calibration corpus."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selectors.base import LocalNorm, ModelEvidence, Need, PromptEvidence, local_scores


@dataclass(frozen=True, slots=True)
class AGlass:
    """`local` and `activation` choose the variants of the two statistics; l1 for both is our default."""

    local: LocalNorm = "l1"
    activation: Literal["l1", "l2"] = "l1"

    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOCAL, Need.ACTIVATION})
    fuses: ClassVar[bool] = True

    def prompt_scores(self, prompt: PromptEvidence) -> FloatArray:
        return local_scores(prompt.local, self.local)

    def model_scores(self, model: ModelEvidence) -> FloatArray:
        statistics = model.artifact()
        return statistics.activation_l1 if self.activation == "l1" else statistics.activation_l2


SELECTOR = AGlass()
