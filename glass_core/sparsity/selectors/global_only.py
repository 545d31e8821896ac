"""The calibration corpus alone (activation statistic): A-GLASS with lambda 1, the same neurons for every prompt."""

from dataclasses import dataclass
from typing import ClassVar

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selectors.base import ModelEvidence, Need, PromptEvidence


@dataclass(frozen=True, slots=True)
class GlobalOnly:
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ACTIVATION})
    fuses: ClassVar[bool] = False

    def prompt_scores(self, prompt: PromptEvidence) -> None:
        return None

    def model_scores(self, model: ModelEvidence) -> FloatArray:
        return model.artifact().activation_l1


SELECTOR = GlobalOnly()
