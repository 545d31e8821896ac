"""Refined rows: against a cascade written in numpy, in batches and chunks, and with thresholds that keep everything."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.ffn import ACTIVATIONS
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import STAGES, Refinement, ScoreWeights
from tests.parity.harness import Harness, greedy, make_plan, make_row, singles, split
from tests.parity.variants import FEW_VARIANTS, Variant, random_tokens

PROMPT = random_tokens(9, seed=1)
ANSWER = random_tokens(8, seed=2)
SCALES = (0.5, 1.0, 2.0, 1.0, 0.25, 4.0, 1.0, 1.5)
VARIANTS = (*FEW_VARIANTS, Variant("llama-mlp-bias", "llama", {"mlp_bias": True}))
POOLS = ((88, 88, 88), (60, 88, 7))

Array = npt.NDArray[np.float64]
# of a vector and the indices of its elements that are there
Product = Callable[[npt.NDArray[Any], npt.NDArray[Any]], Array]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    variant: Variant = request.param
    return Harness(variant.save(tmp_path))


def refined_plan(harness: Harness, budgets: Sequence[int], *, strength: float = 1.0) -> SparsityPlan:
    """Random score weights; at strength 1 each stage drops about half of what it sees."""
    plan, weights = make_plan(harness.spec, budgets), random_weights(harness)
    cascade = NumpyCascade(harness, plan, Refinement(weights, np.zeros((len(STAGES), 3), np.float32), reads=0.5))
    cascade.logits()
    thresholds = np.array(cascade.median_scores(), np.float32) * np.float32(strength)
    return replace(plan, refinement=Refinement(weights, thresholds, reads=0.5))


def random_weights(harness: Harness) -> ScoreWeights:
    rng, spec = np.random.default_rng(3), harness.spec
    sizes = (spec.hidden_size, spec.intermediate_size)
    return ScoreWeights(*(rng.uniform(0.5, 2.0, (spec.num_layers, size)).astype(np.float32) for size in sizes))


class NumpyCascade:
    """The definition, token by token in float64, injected into the model's forward pass."""

    def __init__(self, harness: Harness, plan: SparsityPlan, refinement: Refinement) -> None:
        self.harness, self.plan, self.refinement = harness, plan, refinement
        self.weights_read: list[int] = []
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
        gate_proj, up_proj, down_proj = self.matrices(layer)
        pool, weights = self.plan.neurons[layer], self.refinement.weights
        least = scale * self.refinement.thresholds[:, layer]
        input_scores = np.abs(x) * weights.inputs[layer]
        inputs = np.flatnonzero(input_scores >= least[0])
        u = up_proj(x, inputs)
        z = ACTIVATIONS[self.harness.spec.activation](torch.tensor(gate_proj(x, inputs))).numpy() * u
        down_scores = (np.abs(z) * weights.down[layer])[pool]
        kept = pool[down_scores >= least[1]]
        self.scores.append((input_scores, down_scores))
        self.weights_read.append(2 * len(inputs) * len(u) + len(kept) * len(x))
        return down_proj(z, kept)

    def matrices(self, layer: int) -> tuple[Product, Product, Product]:
        """gate_proj, up_proj and down_proj of a vector, of which only the named elements are there."""
        weights = self.harness.model.layers[layer].ffn
        gate, up = np.split(weights.gate_up.double().numpy(), 2)
        biases = (0.0, 0.0) if weights.gate_up_bias is None else np.split(weights.gate_up_bias.double().numpy(), 2)
        down, down_bias = weights.down_proj.double().numpy().T, weights.down_bias

        def product(matrix: Array, bias: Any) -> Product:
            return lambda values, there: matrix[:, there] @ values[there] + bias

        last = 0.0 if down_bias is None else down_bias.double().numpy()
        return product(gate, biases[0]), product(up, biases[1]), product(down, last)

    def median_scores(self) -> list[list[float]]:
        """Thresholds of all stages and layers that drop half of what each stage sees."""
        tokens = len(ANSWER)
        layers = [self.scores[start : start + tokens] for start in range(0, len(self.scores), tokens)]
        return [
            [float(np.median(np.concatenate([scores[stage] for scores in layer]))) for layer in layers]
            for stage in range(len(STAGES))
        ]


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
    num_weights = 3 * 3 * 88 * harness.spec.hidden_size
    assert result.rows[0].ffn_reads == sum(cascade.weights_read) / (num_weights * len(ANSWER))
    assert result.rows[0].cost.ffn_flops_computed == 2 * sum(cascade.weights_read)


def test_what_is_skipped_contributes_exactly_nothing(harness: Harness) -> None:
    plan = refined_plan(harness, POOLS[0])
    assert plan.refinement is not None
    # never reach a threshold
    plan.refinement.weights.inputs[:, ::3] = 0.0
    plan.refinement.weights.down[:, 1::4] = 0.0
    row = make_row(ANSWER, start=len(PROMPT), plan=plan, refine_scales=SCALES)
    harness.feed([PROMPT])
    before, expected = harness.step(row)
    with torch.no_grad():
        for layer in harness.model.layers:
            layer.up_proj[:, ::3] += 1.0
            layer.gate_proj[:, ::3] += 1.0
            layer.down_proj[1::4] += 1.0
    after, found = harness.step(row)
    assert torch.equal(after[0], before[0])
    assert found.rows[0].cost == expected.rows[0].cost


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


def test_thresholds_of_zero_are_dense(harness: Harness) -> None:
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


def test_a_token_reads_its_own_weights_and_a_row_their_union(harness: Harness) -> None:
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
