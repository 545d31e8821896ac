"""How much of what an answer really uses a condition keeps: sets of neurons compared with the oracle's, per layer.

The oracle's set of a layer are the best neurons by the answer's own statistic, as many as the condition's profile keeps
there. `jaccard` compares a condition's set with it: |A and B| / |A or B|. A refined answer has a set per token (the
neurons whose down_proj row is read); its set for `jaccard` are those that most tokens keep, as many as the oracle's.

`token_jaccard` asks what no fixed set can reach: each token's set (a static plan's is always the same) against the
best neurons of that token alone, by |z|, as many as the token's set has; the mean over the answer's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.offline.evaluate.conditions import ORACLE
from glass_core.offline.evaluate.longform import DenseAnswer, predict_tokens
from glass_core.offline.evaluate.refined import MAX_ROWS, RefinedRow, RowsFfn, TorchRows, decode_refined
from glass_core.runners.torch_runner.cascade import Kept
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import NeuronIndices, SparsityPlan
from glass_core.sparsity.ranking import ranks, top_k
from glass_core.sparsity.refinement import Refinement
from glass_core.sparsity.selection import PlanSelector

Layers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """Of one condition on one answer: per layer, (num_layers,)."""

    jaccard: Layers
    token_jaccard: Layers


class AnswerOracle:
    """One answer's own sets, to compare conditions with."""

    def __init__(self, model: TorchModel, selector: PlanSelector, dense: DenseAnswer) -> None:
        self._model, self._selector, self._dense = model, selector, dense
        self._places = _token_places(model, dense)

    def overlap(self, params: SparsityParams) -> Overlap:
        """Of a static condition. Raises what the selector raises for these parameters."""
        oracle = self._oracle(params)
        if params.method == ORACLE:
            plan: SparsityPlan | None = oracle
        else:
            plan = self._selector.select(params, self._dense.prompt_statistics)
        assert plan is not None
        return Overlap(_jaccards(plan.neurons, oracle.neurons), self._token_jaccard(_masks(plan)[None]))

    def refined_overlap(self, params: SparsityParams, kept: Tensor) -> Overlap:
        """Of a refined condition whose tokens kept these neurons (n, layers, m), see `refined_masks`."""
        oracle = self._oracle(params)
        often = top_k(ranks(kept.sum(dim=0, dtype=torch.float32).numpy()), oracle.budgets)
        return Overlap(_jaccards(often, oracle.neurons), self._token_jaccard(kept))

    def _oracle(self, params: SparsityParams) -> SparsityPlan:
        wanted = replace(params, method=ORACLE, lambda_=None, refine=False)
        plan = self._selector.select(wanted, self._dense.answer_statistics)
        assert plan is not None, "a sparse condition keeps every neuron"
        return plan

    def _token_jaccard(self, kept: Tensor) -> Layers:
        """Of sets (n or 1, layers, m): the mean over tokens, (layers,)."""
        sizes = kept.sum(dim=-1, keepdim=True)
        best = self._places < sizes
        shared = (best & kept).sum(dim=-1)
        joined = (best | kept).sum(dim=-1)
        # a token that keeps nothing in a layer has the best nothing
        means: Layers = torch.where(joined > 0, shared / joined.clamp(min=1), 1.0).double().mean(dim=0).numpy()
        return means


def _jaccards(chosen: Sequence[NeuronIndices], oracle: Sequence[NeuronIndices]) -> Layers:
    shared = [len(np.intersect1d(mine, theirs)) for mine, theirs in zip(chosen, oracle, strict=True)]
    joined = [len(np.union1d(mine, theirs)) for mine, theirs in zip(chosen, oracle, strict=True)]
    return np.array(shared, np.float64) / np.maximum(joined, 1)


def _masks(plan: SparsityPlan) -> Tensor:
    """(layers, m) bool."""
    masks = torch.zeros(len(plan.neurons), plan.intermediate_size, dtype=torch.bool)
    for mask, neurons in zip(masks, plan.neurons, strict=True):
        mask[torch.tensor(neurons, dtype=torch.long)] = True
    return masks


@torch.no_grad()
def _token_places(model: TorchModel, dense: DenseAnswer) -> Tensor:
    """(n, layers, m): each neuron's place among its layer's by |z| of that token in the dense model, 0 = the best."""
    places: list[Tensor] = []

    def ffn(layer: int, x: Tensor) -> Tensor:
        z = model.ffn_activation(layer, x)
        order = z.abs().float().argsort(dim=-1, descending=True, stable=True).cpu()
        places.append(torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order)))
        return model.ffn_output(layer, z)

    predict_tokens(model, dense.continuation, dense.prompt_cache.fork(), ffn)
    return torch.stack(places, dim=1).to(torch.int32)


def refined_masks(model: TorchModel, dense: Sequence[DenseAnswer], plan: SparsityPlan) -> list[Tensor]:
    """(n, layers, m) bool of each answer: the neurons whose down_proj row each token reads under a refined plan, with
    thresholds adjusted as in the server."""
    found: list[list[Tensor]] = [[] for _ in dense]
    for start in range(0, len(dense), MAX_ROWS):
        rows = [RefinedRow(one, plan) for one in dense[start : start + MAX_ROWS]]
        run = _RecordedRows(model, rows)
        for step in decode_refined(run, rows):
            for number, mask in zip(step.rows, run.kept(), strict=True):
                found[start + number].append(mask)
    return [torch.stack(masks) for masks in found]


class _RecordedRows(TorchRows):
    """Remembers which neurons reach down_proj in the last step."""

    _ffn: "_RecordedFfn"

    def make_ffn(self, refinements: Sequence[Refinement], scales: Sequence[float]) -> RowsFfn:
        self._ffn = _RecordedFfn(self._model, refinements, scales)
        return self._ffn

    def kept(self) -> Tensor:
        """(rows, layers, m)."""
        return torch.stack(self._ffn.layers, dim=1)


class _RecordedFfn(RowsFfn):
    """Keeps the masks, layer by layer, (rows, m)."""

    def __init__(self, model: TorchModel, refinements: Sequence[Refinement], scales: Sequence[float]) -> None:
        super().__init__(model, refinements, scales)
        self.layers: list[Tensor] = []

    def count(self, kept: Kept) -> None:
        super().count(kept)
        self.layers.append(kept.down.cpu())
