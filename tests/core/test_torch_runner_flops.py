"""Reported FLOPs against torch's own count of the matrix products executed, to the last FLOP."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glass_core.api import StepCost
from glass_core.runners.base import StepRow
from tests.parity.harness import Harness, greedy, make_plan, make_row
from tests.tiny_models import save_tiny_model

MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"mlp_bias": True, "attention_bias": True}),
    ("mistral", {"sliding_window": 5}),
    ("qwen2", {}),
    ("qwen3", {}),
)


def count(harness: Harness, *rows: StepRow) -> int:
    """Executes a step; FLOPs torch counted. The harness's own extra logits are not part of the step."""
    num_tokens = sum(len(row.token_ids) for row in rows)
    with FlopCounterMode(display=False) as counter:
        _, result = harness.step(*rows)
    extra = 2 * num_tokens * harness.spec.hidden_size * harness.spec.vocab_size
    executed = int(counter.get_total_flops()) - extra
    total = sum((row.cost for row in result.rows), StepCost())
    assert executed == total.flops_computed
    return executed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "overrides"), MODELS, ids=[family for family, _ in MODELS])
def test_every_kind_of_step(family: str, overrides: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    harness = Harness(save_tiny_model(tmp_path, family, **overrides), dtype)
    first, second = make_plan(harness.spec, (30, 88, 7)), make_plan(harness.spec, (1, 2, 3))
    whole = count(harness, make_row(range(10), sample=greedy()))
    inner = count(harness, make_row(range(6), slot=1, collect_statistics=True))
    last = count(harness, make_row(range(4), slot=1, start=6, collect_statistics=True, sample=greedy()))
    dense = count(harness, make_row([7], start=10, sample=greedy()))
    sparse = count(harness, make_row([7], slot=1, start=10, plan=first, sample=greedy()))
    mixed = count(
        harness,
        make_row([8], slot=0, start=11, plan=second, sample=greedy()),
        make_row(range(9), slot=2, collect_statistics=True),
        make_row([8], slot=1, start=11, plan=first, sample=greedy()),
        make_row([8, 9, 10], slot=3, sample=greedy()),
    )
    assert sparse < dense < whole
    # chunks leave out the rectangle of early tokens against later keys
    assert inner + last == whole - harness.spec.num_layers * 4 * 6 * 4 * harness.spec.q_size
    assert mixed > dense


def test_a_sparse_step_saves_exactly_the_pruned_rows(tmp_path: Path) -> None:
    harness = Harness(save_tiny_model(tmp_path, "llama"))
    plan = make_plan(harness.spec, (30, 88, 7))
    _, result = harness.step(make_row(range(5), plan=plan))
    (cost,) = (row.cost for row in result.rows)
    pruned = (88 - 30) + 0 + (88 - 7)
    assert cost.flops_saved == 2 * 5 * 3 * 48 * pruned
    assert cost.ffn_bytes_dense - cost.ffn_bytes_computed == 3 * 48 * pruned * 4
