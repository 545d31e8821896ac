"""GRIFFIN (arXiv 2404.01365): the prompt's own activations alone, its l2 statistic exactly."""

from dataclasses import dataclass
from typing import ClassVar

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selectors.base import ModelEvidence, Need, PromptEvidence


@dataclass(frozen=True, slots=True)
class Griffin:
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOCAL})
    fuses: ClassVar[bool] = False

    def prompt_scores(self, prompt: PromptEvidence) -> FloatArray:
        return prompt.local.l2()

    def model_scores(self, model: ModelEvidence) -> None:
        return None


SELECTOR = Griffin()
