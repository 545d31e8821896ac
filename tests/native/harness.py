"""A NativeRunner whose logits can be seen, and the torch runner on exactly the weights the image holds."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from glass_core.checkpoint.prepared import SINGLE_FILE, open_prepared
from glass_core.config import CacheConfig
from glass_core.models.registry import tensor_names
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepBatch, StepResult, StepRow
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.decode import decode_image
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.runner import NativeRunner, kv_block_bytes
from glass_core.runners.native.types import Floats, Indices, NativeModel, SampleRequest, StatisticsRequest, StepOutput
from tests.parity.harness import BLOCK_SIZE, NUM_BLOCKS, greedy, make_row
from tests.parity.variants import Variant

FORMATS = ("bf16", "int8", "int4")


class RecordingModel:
    """Passes everything on and keeps a copy of the last step's logits."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self.last_logits: Floats = np.empty((0, 0), np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(
        self,
        tokens: Indices,
        blocks: Indices,
        layout: Indices,
        frequencies: Floats,
        statistics: list[StatisticsRequest],
        samples: list[SampleRequest],
        scales: Floats,
    ) -> StepOutput:
        output = self._model.step(tokens, blocks, layout, frequencies, statistics, samples, scales)
        self.last_logits = output[1].copy()
        return output


class NativeHarness:
    """One native runner; rows are fed with scattered block tables."""

    def __init__(
        self,
        header: ImageHeader,
        *,
        num_threads: int = 2,
        isa: str | None = None,
        kv_cache_dtype: str = "bf16",
        block_size: int = BLOCK_SIZE,
    ) -> None:
        kv_bytes = NUM_BLOCKS * kv_block_bytes(header.spec, block_size, kv_cache_dtype)
        cache = CacheConfig(block_size, kv_bytes, kv_cache_dtype=kv_cache_dtype)
        self.runner = NativeRunner(header, cache, num_threads=num_threads, isa=isa)
        self._recording = RecordingModel(self.runner._open())
        self.runner._model = self._recording

    @property
    def spec(self) -> ModelSpec:
        return self.runner.spec

    def step(self, *rows: StepRow) -> tuple[Floats, StepResult]:
        """Logits of the rows that sample (n, vocab), and the step's result."""
        result = self.runner.execute(StepBatch(rows))
        return self._recording.last_logits, result

    def feed(self, calls: Sequence[Sequence[int]], *, slot: int = 0, start: int = 0, **row: Any) -> Floats:
        """Rows of one sequence, one step each, from position `start` on: the logits of every call's last token."""
        parts = []
        for tokens in calls:
            logits, _ = self.step(make_row(tokens, slot=slot, start=start, sample=greedy(), **row))
            parts.append(logits)
            start += len(tokens)
        return np.concatenate(parts)


def make_header(variant: Variant, folder: Path, image_format: str) -> ImageHeader:
    """The image of a variant's checkpoint, both in `folder`."""
    return make_image(open_prepared(variant.save(folder)), image_format)


def save_decoded(header: ImageHeader, model_dir: Path, folder: Path) -> Path:
    """An HF folder with the image's weights, decoded to float32."""
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.img"))
    names = tensor_names(header.spec)
    tensors = {names[name]: np.ascontiguousarray(values) for name, values in decode_image(header)}
    save_file(tensors, folder / SINGLE_FILE)
    return folder


def correlation_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Root mean square of the difference, relative to the spread of what is expected."""
    return float(np.sqrt(np.mean(np.square(actual - expected))) / np.std(expected))
