"""A TorchRunner whose logits can be seen, fed row by row with scattered block tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glass_core.api import SamplingParams
from glass_core.config import CacheConfig
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import SampleInput, StepBatch, StepResult, StepRow
from glass_core.runners.torch_runner.kv_pool import block_bytes
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.runners.torch_runner.step import place_rows
from glass_core.sparsity.plan import SparsityPlan

BLOCK_SIZE = 4
BLOCKS_PER_SEQUENCE = 16
NUM_BLOCKS = 96


class RecordingModel(TorchModel):
    """Keeps the logits of every token of the last forward pass, in the order of the step."""

    last_logits: Tensor

    def forward(self, token_ids: Tensor, positions: Tensor, **callables: Any) -> Tensor:
        hidden = super().forward(token_ids, positions, **callables)
        self.last_logits = self.logits(hidden)
        return hidden


class Harness:
    """One runner. Slots give a sequence its own, unordered blocks."""

    def __init__(self, model_dir: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = RecordingModel.load(model_dir, dtype=dtype, device="cpu")
        cache = CacheConfig(BLOCK_SIZE, NUM_BLOCKS * block_bytes(self.model.spec, BLOCK_SIZE, dtype))
        self.runner = TorchRunner(self.model, cache)

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    def step(self, *rows: StepRow) -> tuple[list[Tensor], StepResult]:
        """Logits of all tokens of each row (T, vocab), in the order of the rows, and the step's result."""
        batch = StepBatch(rows)
        result = self.runner.execute(batch)
        logits: list[Tensor] = [torch.empty(0)] * len(rows)
        for item in place_rows(batch):
            logits[item.index] = self.model.last_logits[item.tokens]
        return logits, result

    def feed(self, calls: Sequence[Sequence[int]], *, slot: int = 0, start: int = 0, **row: Any) -> Tensor:
        """Rows of one sequence, one step each, from position `start` on: logits of all its tokens (n, vocab)."""
        parts = []
        for tokens in calls:
            logits, _ = self.step(make_row(tokens, slot=slot, start=start, **row))
            parts.append(logits[0])
            start += len(tokens)
        return torch.cat(parts)


def make_row(tokens: Sequence[int], *, slot: int = 0, start: int = 0, **fields: Any) -> StepRow:
    blocks = np.random.default_rng(1).permutation(NUM_BLOCKS)[slot * BLOCKS_PER_SEQUENCE :][:BLOCKS_PER_SEQUENCE]
    defaults = {"sequence_id": f"sequence-{slot}", "block_table": tuple(blocks.tolist())}
    return StepRow(token_ids=tuple(tokens), start=start, **{**defaults, **fields})


def greedy(prompt: Sequence[int] = (), generated: Sequence[int] = ()) -> SampleInput:
    return SampleInput(SamplingParams(max_tokens=64, seed=0, temperature=0.0), tuple(prompt), tuple(generated))


def make_plan(spec: ModelSpec, budgets: Sequence[int], seed: int = 0) -> SparsityPlan:
    """A random plan with these budgets, one per layer."""
    rng = np.random.default_rng(seed)
    neurons = tuple(
        np.sort(rng.choice(spec.intermediate_size, budget, replace=False)).astype(np.int32) for budget in budgets
    )
    for layer in neurons:
        layer.flags.writeable = False  # as a selector's are
    return SparsityPlan("random", "uniform", None, 0.5, spec.intermediate_size, neurons)


def split(tokens: Sequence[int], *sizes: int) -> list[tuple[int, ...]]:
    """Chunks of these sizes and the rest."""
    chunks, start = [], 0
    for size in (*sizes, len(tokens)):
        chunks.append(tuple(tokens[start : start + size]))
        start += size
    return [chunk for chunk in chunks if chunk]


def singles(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [(token,) for token in tokens]
