"""Rows under a plan: against HF with pruned neurons zeroed by a hook, mixed into batches, and after a preemption."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from glass_core.runners.base import StepRow
from glass_core.sparsity.plan import SparsityPlan
from tests.parity.harness import Harness, greedy, make_plan, make_row, singles, split
from tests.parity.variants import FEW_VARIANTS, Variant, hf_logits, random_tokens

PROMPT = random_tokens(21, seed=1)
ANSWER = random_tokens(12, seed=2)
BUDGETS = (30, 88, 7)
VARIANTS = (*FEW_VARIANTS, Variant("llama-mlp-bias", "llama", {"mlp_bias": True}))


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    value: Variant = request.param
    return value


@contextmanager
def neurons_zeroed(hf_model: Any, plan: SparsityPlan) -> Iterator[None]:
    """HF's model with z set to zero outside the plan, by hooks before every down_proj."""

    def hook(kept: Tensor) -> Any:
        return lambda _module, inputs: (inputs[0] * kept,)

    handles = []
    for layer, neurons in zip(hf_model.model.layers, plan.neurons, strict=True):
        kept = torch.zeros(plan.intermediate_size)
        kept[torch.tensor(neurons).long()] = 1.0
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(hook(kept)))
    yield
    for handle in handles:
        handle.remove()


@torch.inference_mode()
def hf_dense_prompt_sparse_answer(hf_model: Any, plan: SparsityPlan) -> Tensor:
    """Logits of the answer's tokens, (n, vocab)."""
    cache = hf_model(torch.tensor([PROMPT]), use_cache=True).past_key_values
    with neurons_zeroed(hf_model, plan):
        logits: Tensor = hf_model(torch.tensor([ANSWER]), past_key_values=cache, use_cache=True).logits[0]
    return logits


def test_views_equal_hf_with_pruned_neurons_zeroed(variant: Variant, tmp_path: Path) -> None:
    harness = Harness(variant.save(tmp_path))
    plan = make_plan(harness.spec, BUDGETS)
    expected = hf_dense_prompt_sparse_answer(variant.hf_model(), plan)
    for slot, calls in enumerate(([ANSWER], split(ANSWER, 1, 4), singles(ANSWER))):
        harness.feed([PROMPT], slot=slot)
        actual = harness.feed(calls, slot=slot, start=len(PROMPT), plan=plan)
        assert_close(actual, expected, atol=1e-4, rtol=0)


def test_an_empty_layer_adds_nothing_but_its_bias(tmp_path: Path) -> None:
    variant = VARIANTS[-1]
    harness = Harness(variant.save(tmp_path))
    plan = make_plan(harness.spec, (0, 88, 0))
    expected = hf_dense_prompt_sparse_answer(variant.hf_model(), plan)
    harness.feed([PROMPT])
    assert_close(harness.feed([ANSWER], start=len(PROMPT), plan=plan), expected, atol=1e-4, rtol=0)


def test_a_plan_of_all_neurons_equals_dense(variant: Variant, tmp_path: Path) -> None:
    harness = Harness(variant.save(tmp_path))
    plan = make_plan(harness.spec, (harness.spec.intermediate_size,) * harness.spec.num_layers)
    dense = harness.feed([PROMPT, ANSWER])
    assert_close(harness.feed([PROMPT, ANSWER], slot=1, plan=plan), dense, atol=1e-5, rtol=0)


def test_a_preempted_and_recomputed_sequence_equals_an_uninterrupted_one(variant: Variant, tmp_path: Path) -> None:
    harness = Harness(variant.save(tmp_path))
    plan = make_plan(harness.spec, BUDGETS)
    length = {"num_prompt_tokens": len(PROMPT)}
    harness.feed([PROMPT], **length)
    uninterrupted = harness.feed(singles(ANSWER), start=len(PROMPT), plan=plan, **length)

    harness.runner.release("sequence-0")
    harness.feed(split(PROMPT, 8), slot=3, sequence_id="sequence-0", **length)
    recomputed = harness.feed(
        [ANSWER[:7], *singles(ANSWER[7:])], slot=3, sequence_id="sequence-0", start=len(PROMPT), plan=plan, **length
    )
    assert_close(recomputed, uninterrupted, atol=2e-5 * max(1.0, float(uninterrupted.abs().max())), rtol=0)


def mixed_rows(harness: Harness) -> tuple[StepRow, ...]:
    """Sparse and dense, decode and prefill, first chunks and later ones, in no particular order."""
    first, second = make_plan(harness.spec, BUDGETS, seed=1), make_plan(harness.spec, (5, 40, 88), seed=2)
    for slot, length in enumerate((9, 4, 0, 13, 6)):
        if length:
            harness.feed([PROMPT[:length]], slot=slot)
    return (
        make_row(ANSWER[:1], slot=0, start=9, plan=first, sample=greedy(PROMPT[:9], ANSWER[:1])),
        make_row(ANSWER[:5], slot=1, start=4, collect_statistics=True),
        make_row(PROMPT[:6], slot=2, collect_statistics=True, sample=greedy(PROMPT[:6])),
        make_row(ANSWER[:4], slot=3, start=13, plan=second, sample=greedy(PROMPT[:13], ANSWER[:4])),
        make_row(ANSWER[:1], slot=4, start=6, sample=greedy(PROMPT[:6], ANSWER[:1])),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_batch_of_rows_equals_the_rows_alone(variant: Variant, tmp_path: Path, dtype: torch.dtype) -> None:
    harness = Harness(variant.save(tmp_path), dtype)
    atol = 2e-5 if dtype == torch.float32 else 0.3
    rows = mixed_rows(harness)
    together, result = harness.step(*rows)
    for row, logits, row_result in zip(rows, together, result.rows, strict=True):
        (alone,), alone_result = harness.step(row)
        assert_close(logits, alone, atol=atol, rtol=0)
        (expected,) = alone_result.rows
        assert row_result.cost == expected.cost
        assert (row_result.token_id is None) == (row.sample is None)
        assert (row_result.statistics is None) == (not row.collect_statistics)
        if dtype == torch.float32:
            assert row_result.token_id == expected.token_id
        if row_result.statistics is not None and expected.statistics is not None:
            np.testing.assert_allclose(row_result.statistics.sum_abs, expected.statistics.sum_abs, atol=atol)


def test_greedy_generation_equals_hf(variant: Variant, tmp_path: Path) -> None:
    harness, hf_model = Harness(variant.save(tmp_path)), variant.hf_model()
    tokens = list(PROMPT)
    for _ in range(10):
        start = 0 if len(tokens) == len(PROMPT) else len(tokens) - 1
        _, result = harness.step(make_row(tokens[start:], start=start, sample=greedy(tokens)))
        (row,) = result.rows
        assert row.token_id == int(hf_logits(hf_model, tuple(tokens))[-1].argmax())
        tokens.append(row.token_id)
