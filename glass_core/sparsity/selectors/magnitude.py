"""The weights alone, ||gate row|| * ||up row|| per neuron: a baseline that needs neither prompt nor calibration."""

from dataclasses import dataclass
from typing import ClassVar

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selectors.base import ModelEvidence, Need, PromptEvidence


@dataclass(frozen=True, slots=True)
class Magnitude:
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MAGNITUDE})
    fuses: ClassVar[bool] = False

    def prompt_scores(self, prompt: PromptEvidence) -> None:
        return None

    def model_scores(self, model: ModelEvidence) -> FloatArray:
        return model.magnitudes()


SELECTOR = Magnitude()
