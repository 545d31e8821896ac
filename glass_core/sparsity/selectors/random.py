"""Random neurons: the floor every method must beat. The seed decides, never the prompt."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from glass_core.sparsity.local_stats import FloatArray
from glass_core.sparsity.selectors.base import ModelEvidence, Need, PromptEvidence

_SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Random:
    """Scores from a counter-based generator (Philox), the same on every platform for a seed."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    fuses: ClassVar[bool] = False

    def prompt_scores(self, prompt: PromptEvidence) -> FloatArray:
        generator = np.random.Generator(np.random.Philox(key=prompt.seed & _SEED_MASK))
        return generator.random(prompt.local.sum_abs.shape, dtype=np.float32)

    def model_scores(self, model: ModelEvidence) -> None:
        return None


SELECTOR = Random()
