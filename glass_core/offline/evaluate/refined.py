"""Refined answers, many side by side: one token of each per step, each row decoded as a server decodes it alone.

A refined token's thresholds depend on what the tokens before it read, so an answer cannot go through in one step as
under a static plan. But rows do not depend on each other: each has a cache and a reads controller of its own, and only
the weights are read once for all of them, which makes minutes of what would be an hour.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glass_core.engine.refine_control import ReadsController
from glass_core.offline.evaluate.longform import DenseAnswer
from glass_core.runners.torch_runner.attention import JoinedCaches
from glass_core.runners.torch_runner.cascade import Kept, StageTensors, run_cascade
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.flops import ffn_weights
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement

# decoded side by side at most: more rows no longer share much, and their predictions take memory
MAX_ROWS = 96

# (number of the token, numbers of the rows, their scales) -> log-probabilities of the token after it (rows, vocab), and
# the share of FFN weights that each row read
RunRows = Callable[[int, Sequence[int], Sequence[float]], tuple[Tensor, Sequence[float]]]


@dataclass(frozen=True, slots=True, eq=False)
class RefinedRow:
    """One dense answer, teacher-forced under one refined plan."""

    dense: DenseAnswer
    plan: SparsityPlan

    @property
    def num_tokens(self) -> int:
        return len(self.dense.continuation)

    @property
    def refinement(self) -> Refinement:
        assert self.plan.refinement is not None
        return self.plan.refinement


@dataclass(frozen=True, slots=True, eq=False)
class RefinedStep:
    """Token number `index` of all `rows` that have one: `log_probs` (rows, vocab) of the token after it, and the share
    of FFN weights that each row read."""

    index: int
    rows: tuple[int, ...]
    log_probs: Tensor
    reads: Sequence[float]


def decode_refined(run: RunRows, rows: Sequence[RefinedRow]) -> Iterator[RefinedStep]:
    """Decode all rows to their ends."""
    controllers = [ReadsController(row.refinement.reads) for row in rows]
    for index in range(max((row.num_tokens for row in rows), default=0)):
        live = tuple(number for number, row in enumerate(rows) if index < row.num_tokens)
        scales = [controllers[number].scales(index, index + 1)[0] for number in live]
        log_probs, reads = run(index, live, scales)
        for number, share in zip(live, reads, strict=True):
            controllers[number].observe(index, index + 1, share)
        yield RefinedStep(index, live, log_probs, reads)


class TorchRows:
    """The rows on the reference model, a `RunRows`. Their plans' pools are all neurons: a refiner's plans' are."""

    def __init__(self, model: TorchModel, rows: Sequence[RefinedRow]) -> None:
        self._model = model
        self._rows = rows
        self._caches = [row.dense.prompt_cache.fork() for row in rows]

    @torch.no_grad()
    def __call__(self, index: int, rows: Sequence[int], scales: Sequence[float]) -> tuple[Tensor, list[float]]:
        ffn = self.make_ffn([self._rows[number].refinement for number in rows], scales)
        caches = [self._caches[number] for number in rows]
        positions = torch.tensor([cache.num_tokens for cache in caches], device=self._model.device)
        hidden = self._model.forward(
            torch.stack([self._rows[number].dense.continuation[index] for number in rows]),
            positions,
            attention=JoinedCaches(caches, [1] * len(caches)),
            ffn=ffn,
            rope_lengths=positions + 1,
        )
        return torch.log_softmax(self._model.logits(hidden), dim=-1), ffn.reads

    def make_ffn(self, refinements: Sequence[Refinement], scales: Sequence[float]) -> "RowsFfn":
        """The FFN of one step."""
        return RowsFfn(self._model, refinements, scales)


class RowsFfn:
    """An `Ffn` that refines every row (token) by thresholds of its own, and counts what each reads."""

    def __init__(self, model: TorchModel, refinements: Sequence[Refinement], scales: Sequence[float]) -> None:
        self._model = model
        # plans of one profile share their weights
        distinct = list(dict.fromkeys(item.weights for item in refinements))
        self._distinct = [StageTensors.of_weights(weights, model.device) for weights in distinct]
        self._which = torch.tensor([distinct.index(item.weights) for item in refinements], device=model.device)
        thresholds = torch.stack([torch.from_numpy(item.thresholds) for item in refinements], dim=-1)
        self._thresholds = (thresholds * torch.tensor(scales, dtype=torch.float32)).to(model.device)
        self._num_products = torch.zeros(len(refinements), dtype=torch.int64, device=model.device)

    @property
    def reads(self) -> list[float]:
        """Share of FFN weights each row read."""
        spec = self._model.spec
        all_weights = ffn_weights(spec, spec.num_layers * spec.intermediate_size)
        shares: list[float] = (self._num_products / all_weights).tolist()
        return shares

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        weights, scores = self._model.layers[layer].ffn, self._scores(layer)
        z, kept = run_cascade(weights, self._model.spec.activation, x, scores, self._thresholds[:, layer])
        self.count(kept)
        return self._model.ffn_output(layer, z)

    def _scores(self, layer: int) -> StageTensors:
        """Weights of one layer's scores, of all rows alike (size,) or of every row (rows, size)."""
        layers = [item.of_layer(layer) for item in self._distinct]
        if len(layers) == 1:
            return layers[0]
        return StageTensors(
            torch.stack([item.inputs for item in layers])[self._which],
            torch.stack([item.down for item in layers])[self._which],
        )

    def count(self, kept: Kept) -> None:
        """Called once per layer, in order."""
        self._num_products += kept.num_weights(self._model.spec.intermediate_size)
