"""Partial results of a calibration run, keyed by all settings and the model's fingerprint."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import safetensors.numpy

from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.statistics import Float32Array
from glass_core.offline.partial_results import PartialResults, write_whole


class WorkFolder(PartialResults):
    """Compute-or-load for the parts of one run."""

    def __init__(self, key: str) -> None:
        super().__init__(f"calibrate-{key}")

    def corpus(self, make: Callable[[], list[CorpusSequence]], *, name: str = "corpus") -> list[CorpusSequence]:
        """A corpus, drawn once."""
        stored = self.json(name, lambda: [[item.token_ids, item.num_skipped, item.num_prompt] for item in make()])
        return [CorpusSequence(tuple(ids), *numbers) for ids, *numbers in stored]

    def sequence_sums(self, index: int, make: Callable[[], Mapping[str, Float32Array]]) -> dict[str, Float32Array]:
        """Statistics of one sequence."""
        path = self.path / f"sequence-{index:04d}.safetensors"
        if not path.is_file():
            write_whole(path, safetensors.numpy.save(dict(make())))
        tensors: dict[str, Float32Array] = safetensors.numpy.load(path.read_bytes())
        return tensors

    def numbers(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        """A list of numbers, or of lists of them."""
        values: list[Any] = self.json(name, make)
        return values

    def sensitivity(self, layer: int, make: Callable[[], float]) -> float:
        """One layer's sensitivity."""
        return float(self.numbers(_sensitivity_name(layer), lambda: [make()])[0])

    def has_sensitivities(self, layers: Sequence[int]) -> bool:
        """Whether nothing is left to do for these layers."""
        return all((self.path / f"{_sensitivity_name(layer)}.json").is_file() for layer in layers)


def _sensitivity_name(layer: int) -> str:
    return f"sensitivity-{layer:04d}"
