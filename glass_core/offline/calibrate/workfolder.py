"""Partial results of a calibration run on disk, so that a killed run continues where it was.

The folder is keyed by all settings and the model's fingerprint. Every file is written to a temporary name and renamed,
so what exists is whole. Values are stored exactly: a resumed run gives the same bits as an uninterrupted one.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

from glass_core.config import glass_home
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.statistics import Float32Array


class WorkFolder:
    """Compute-or-load for the parts of one run."""

    def __init__(self, key: str) -> None:
        self.path = glass_home() / "work" / f"calibrate-{key}"
        self.path.mkdir(parents=True, exist_ok=True)

    def corpus(self, make: Callable[[], list[CorpusSequence]], *, name: str = "corpus") -> list[CorpusSequence]:
        """A corpus, drawn once."""
        path = self.path / f"{name}.json"
        if not path.is_file():
            _write_json(path, [[list(item.token_ids), item.num_skipped, item.num_prompt] for item in make()])
        return [CorpusSequence(tuple(ids), *numbers) for ids, *numbers in json.loads(path.read_bytes())]

    def sequence_sums(self, index: int, make: Callable[[], Mapping[str, Float32Array]]) -> dict[str, Float32Array]:
        """Statistics of one sequence."""
        path = self.path / f"sequence-{index:04d}.safetensors"
        if not path.is_file():
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(safetensors.numpy.save(dict(make())))
            temporary.replace(path)
        tensors: dict[str, Float32Array] = safetensors.numpy.load(path.read_bytes())
        return tensors

    def numbers(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        """A list of numbers, or of lists of them."""
        path = self.path / f"{name}.json"
        if not path.is_file():
            _write_json(path, make())
        values: list[Any] = json.loads(path.read_bytes())
        return values

    def sensitivity(self, layer: int, make: Callable[[], float]) -> float:
        """One layer's sensitivity."""
        path = self.path / f"sensitivity-{layer:04d}.json"
        if not path.is_file():
            _write_json(path, [make()])
        return float(json.loads(path.read_bytes())[0])

    def has_sensitivities(self, layers: Sequence[int]) -> bool:
        """Whether nothing is left to do for these layers."""
        return all((self.path / f"sensitivity-{layer:04d}.json").is_file() for layer in layers)

    def remove(self) -> None:
        """Drop everything: the artifact is written."""
        shutil.rmtree(self.path)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
