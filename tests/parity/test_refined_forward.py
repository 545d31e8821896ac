"""Refined rows: against a cascade written in numpy, in batches and chunks, and with thresholds that keep everything."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.ffn import ACTIVATIONS
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement
from tests.parity.harness import Harness, greedy, make_plan, make_row, singles, split
from tests.parity.variants import FEW_VARIANTS, Variant, random_tokens

PROMPT = random_tokens(9, seed=1)
ANSWER = random_tokens(8, seed=2)
SCALES = (0.5, 1.0, 2.0, 1.0, 0.25, 4.0, 1.0, 1.5)
VARIANTS = (*FEW_VARIANTS, Variant("llama-mlp-bias", "llama", {"mlp_bias": True}))
POOLS = ((88, 88, 88), (60, 88, 7))

Array = npt.NDArray[np.float64]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    variant: Variant = request.param
    return Harness(variant.save(tmp_path))


def down_norms(harness: Harness) -> npt.NDArray[np.float32]:
    norms: npt.NDArray[np.float32] = np.stack([layer.down_proj.norm(dim=1).numpy() for layer in harness.model.layers])
    return norms


def refined_plan(harness: Harness, budgets: Sequence[int], *, strength: float = 1.0) -> SparsityPlan:
    """Random score weights; at strength 1 each stage drops about half of what it sees."""
    norms = down_norms(harness)
    weights = norms * np.random.default_rng(3).uniform(0.5, 2.0, norms.shape).astype(np.float32)
    cascade = NumpyCascade(harness, make_plan(harness.spec, budgets), Refinement(weights, norms, *ZEROS, reads=0.5))
    cascade.logits()
    thresholds = [np.array(scores, np.float32) * np.float32(strength) for scores in cascade.median_scores()]
    return replace(cascade.plan, refinement=Refinement(weights, norms, thresholds[0], thresholds[1], reads=0.5))


ZEROS = (np.zeros(3, np.float32), np.zeros(3, np.float32))


class NumpyCascade:
    """The definition, token by token in float64, injected into the model's forward pass."""

    def __init__(self, harness: Harness, plan: SparsityPlan, refinement: Refinement) -> None:
        self.harness, self.plan, self.refinement = harness, plan, refinement
        self.rows_read: list[int] = []
        self.scores: list[tuple[Array, Array]] = []

    def logits(self, scales: Sequence[float] = SCALES) -> Tensor:
        """Of the answer, after a dense prompt."""
        model, cache = self.harness.model, SequenceCache(self.harness.spec)
        ids, positions = torch.tensor(PROMPT), torch.arange(len(PROMPT))
        with torch.inference_mode():
            model.forward(ids, positions, attention=cache, ffn=model.dense_ffn)
            positions = torch.arange(len(PROMPT), len(PROMPT) + len(ANSWER))
            ffn = lambda layer, x: self.outputs(layer, x, scales)  # noqa: E731
            hidden = model.forward(torch.tensor(ANSWER), positions, attention=cache, ffn=ffn)
            return model.logits(hidden)

    def outputs(self, layer: int, x: Tensor, scales: Sequence[float]) -> Tensor:
        return torch.tensor(
            np.stack([self.output(layer, token, scale) for token, scale in zip(x.numpy(), scales, strict=True)]),
            dtype=torch.float32,
        )

    def output(self, layer: int, x: npt.NDArray[np.float32], scale: float) -> Array:
        weights, refinement = self.harness.model.layers[layer].ffn, self.refinement
        joined = weights.gate_up.double().numpy() @ x
        if weights.gate_up_bias is not None:
            joined += weights.gate_up_bias.double().numpy()
        gate, up = np.split(joined, 2)
        activation = ACTIVATIONS[self.harness.spec.activation]
        kept = self.plan.neurons[layer]
        self.rows_read.append(len(kept))
        up_scores = np.abs(up) * refinement.up_weights[layer]
        kept = kept[up_scores[kept] >= scale * refinement.up_thresholds[layer]]
        self.rows_read.append(len(kept))
        z = activation(torch.tensor(gate)).numpy() * up
        down_scores = np.abs(z) * refinement.down_norms[layer]
        self.scores.append((up_scores[self.plan.neurons[layer]], down_scores[kept]))
        kept = kept[down_scores[kept] >= scale * refinement.down_thresholds[layer]]
        self.rows_read.append(len(kept))
        down: Array = z[kept] @ weights.down_proj.double().numpy()[kept]
        return down if weights.down_bias is None else down + weights.down_bias.double().numpy()

    def median_scores(self) -> tuple[list[float], list[float]]:
        """Thresholds of all layers that drop half of the pool, and a quarter more."""
        tokens = len(ANSWER)
        layers = [self.scores[start : start + tokens] for start in range(0, len(self.scores), tokens)]
        up = [float(np.median(np.concatenate([scores[0] for scores in layer]))) for layer in layers]
        down = [float(np.median(np.concatenate([scores[1] for scores in layer]))) for layer in layers]
        return up, down


@pytest.mark.parametrize("budgets", POOLS)
def test_refined_rows_equal_the_numpy_cascade(harness: Harness, budgets: Sequence[int]) -> None:
    plan = refined_plan(harness, budgets)
    assert plan.refinement is not None
    cascade = NumpyCascade(harness, plan, plan.refinement)
    expected = cascade.logits()
    harness.feed([PROMPT])
    row = make_row(ANSWER, start=len(PROMPT), plan=plan, refine_scales=SCALES)
    logits, result = harness.step(row)
    assert_close(logits[0], expected, atol=1e-4, rtol=0)
    assert result.rows[0].ffn_reads == sum(cascade.rows_read) / (3 * 3 * 88 * len(ANSWER))
    assert result.rows[0].cost.ffn_flops_computed == 2 * harness.spec.hidden_size * sum(cascade.rows_read)


def test_rows_depend_on_neither_chunks_nor_batch(harness: Harness) -> None:
    plan = refined_plan(harness, POOLS[1])
    harness.feed([PROMPT])
    expected = harness.feed([ANSWER], start=len(PROMPT), plan=plan, refine_scales=SCALES)
    for slot, chunks in enumerate((split(ANSWER, 3, 1), singles(ANSWER)), start=1):
        harness.feed([PROMPT], slot=slot)
        start = 0
        for chunk in chunks:
            row = make_row(chunk, slot=slot, start=len(PROMPT) + start, plan=plan)
            row = replace(row, refine_scales=SCALES[start : start + len(chunk)])
            others = (
                make_row([5], slot=3, start=start),
                make_row([7], slot=4, start=start, plan=refined_plan(harness, POOLS[0])),
            )
            logits, _ = harness.step(others[0], row, others[1])
            assert_close(
                logits[1],
                expected[start : start + len(chunk)],
                atol=1e-5 * max(1.0, float(expected.abs().max())),
                rtol=0,
            )
            start += len(chunk)


def test_thresholds_of_zero_are_dense_to_the_bit(harness: Harness) -> None:
    plan = refined_plan(harness, POOLS[0], strength=0.0)
    whole = replace(plan, refinement=None)
    for slot, each in enumerate((whole, plan)):
        harness.feed([PROMPT], slot=slot)
        logits, result = harness.step(make_row(ANSWER, slot=slot, start=len(PROMPT), plan=each))
        if each is whole:
            expected, dense_cost = logits[0], result.rows[0].cost
    assert torch.equal(logits[0], expected)
    assert result.rows[0].ffn_reads == 1.0
    assert result.rows[0].cost == dense_cost


def test_empty_scales_are_ones_and_larger_ones_read_less(harness: Harness) -> None:
    plan = refined_plan(harness, POOLS[0])
    harness.feed([PROMPT])
    reads = []
    for scales in ((), (1.0,) * len(ANSWER), (2.0,) * len(ANSWER)):
        _, result = harness.step(make_row(ANSWER, start=len(PROMPT), plan=plan, refine_scales=scales))
        reads.append(result.rows[0].ffn_reads)
    assert reads[0] == reads[1]
    assert reads[1] is not None and reads[2] is not None
    assert reads[2] < reads[1]


def test_a_token_reads_its_own_rows_and_a_row_their_union(harness: Harness) -> None:
    plan = refined_plan(harness, POOLS[0])
    harness.feed([PROMPT])
    _, whole = harness.step(make_row(ANSWER, start=len(PROMPT), plan=plan, sample=greedy(PROMPT)))
    cost = whole.rows[0].cost
    parts = []
    for index, token in enumerate(ANSWER):
        _, result = harness.step(make_row([token], start=len(PROMPT) + index, plan=plan))
        parts.append(result.rows[0].cost)
    assert cost.ffn_flops_computed == sum(part.ffn_flops_computed for part in parts)
    assert max(part.ffn_bytes_computed for part in parts) < cost.ffn_bytes_computed
    assert cost.ffn_bytes_computed < sum(part.ffn_bytes_computed for part in parts)
    assert cost.ffn_bytes_planned == cost.ffn_bytes_computed < cost.ffn_bytes_dense
    assert cost.ffn_flops_planned == cost.ffn_flops_computed < cost.ffn_flops_dense
