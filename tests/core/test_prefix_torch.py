"""The prefix cache on the torch runner: running sums, shared blocks, and the plans and answers of whole engines.

The sums are exact, given the same activations. These differ between a whole and a chunked prompt by the rounding of
BLAS, so whole engines are compared by what they choose, not by bits.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.errors import EngineFailureError
from glass_core.runners.base import StepBatch, StepRow
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.runner import TorchRunner
from glass_core.runners.torch_runner.statistics import StatisticsCollector
from glass_core.sparsity.local_stats import LocalStatistics
from tests.core.engine_builders import bits_of
from tests.core.prefix_traffic import CACHE, serve_alike
from tests.fakes_runner import fake_spec
from tests.parity.harness import Harness, make_row
from tests.parity.variants import VARIANTS, Variant, random_tokens
from tests.tiny_models import save_tiny_model

MODELS = [variant for variant in VARIANTS if variant.name in ("llama", "mistral-window", "qwen3")]
SPEC = fake_spec()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(save_tiny_model(tmp_path_factory.mktemp("llama"), "llama"))


def collect(
    z: torch.Tensor, *, prior: LocalStatistics | None = None, lengths: tuple[int, ...] = ()
) -> StatisticsCollector:
    """Collect z (num_layers, num_tokens, intermediate_size)."""
    collector = StatisticsCollector(SPEC, z.shape[1], prior=prior, snapshot_lengths=lengths)
    for layer, values in enumerate(z):
        collector.add(layer, values)
    return collector


@settings(max_examples=50, deadline=None)
@given(
    num_tokens=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39)),
    snapshots=st.sets(st.integers(1, 40)),
    seed=st.integers(0, 9),
)
def test_sums_have_the_same_bits_however_the_prompt_is_cut(
    num_tokens: int, cuts: set[int], snapshots: set[int], seed: int
) -> None:
    shape = (SPEC.num_layers, num_tokens, SPEC.intermediate_size)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    wanted = sorted(end for end in snapshots if end <= num_tokens)
    whole = collect(z, lengths=tuple(wanted))
    chunked: LocalStatistics | None = None
    for start, end in zip(
        ends := [0, *sorted(c for c in cuts if c < num_tokens)], [*ends[1:], num_tokens], strict=True
    ):
        chunked = collect(z[:, start:end], prior=chunked).result()
    assert chunked is not None
    assert chunked.num_tokens == num_tokens
    assert bits_of(chunked) == bits_of(whole.result())
    assert [snapshot.num_tokens for snapshot in whole.snapshots()] == wanted
    for end, snapshot in zip(wanted, whole.snapshots(), strict=True):
        assert bits_of(snapshot) == bits_of(collect(z[:, :end]).result())


def test_the_prior_sums_are_continued_and_left_alone() -> None:
    z = torch.randn(SPEC.num_layers, 3, SPEC.intermediate_size, generator=torch.Generator().manual_seed(0))
    prior = collect(z[:, :2]).result()
    before = bits_of(prior)
    last = collect(z[:, 2:], prior=prior, lengths=(1,))
    assert bits_of(prior) == before
    assert bits_of(last.result()) == bits_of(collect(z).result())
    result, [snapshot] = last.result(), last.snapshots()
    assert not np.shares_memory(result.sum_abs, snapshot.sum_abs)


def zeros(num_layers: int, num_tokens: int) -> LocalStatistics:
    return LocalStatistics(np.zeros((num_layers, 88), np.float32), np.zeros((num_layers, 88), np.float32), num_tokens)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_row([1], prior_statistics=zeros(3, 0)), "without collecting"),
        (make_row([1], snapshot_ends=(1,)), "without collecting"),
        (make_row([1], collect_statistics=True, prior_statistics=zeros(2, 0)), r"shape \(2, 88\), the model \(3, 88\)"),
        (
            make_row([1], collect_statistics=True, prior_statistics=zeros(3, 4)),
            "those of 4 tokens, the row starts at 0",
        ),
        (make_row([1], collect_statistics=True, snapshot_ends=(0,)), r"ascend within \(0, 1\], got \(0,\)"),
        (make_row([1, 2], collect_statistics=True, snapshot_ends=(2, 1)), r"ascend within \(0, 2\]"),
        (make_row([1, 2], collect_statistics=True, snapshot_ends=(1, 3)), r"ascend within \(0, 2\]"),
    ],
)
def test_rows_with_impossible_statistics_are_refused(harness: Harness, row: StepRow, message: str) -> None:
    with pytest.raises(EngineFailureError, match=message):
        harness.runner.execute(StepBatch((row,)))


def test_two_rows_of_a_step_read_the_same_blocks(harness: Harness) -> None:
    prompt = random_tokens(8, seed=1)
    expected = [harness.feed([[*prompt, token]], slot=slot)[-1] for slot, token in enumerate((5, 6))]
    source = make_row(prompt, slot=0)
    harness.step(source)
    rows = [
        make_row([token], slot=slot, start=8, block_table=(*source.block_table[:2], 40 + slot))
        for slot, token in enumerate((5, 6))
    ]
    logits, _ = harness.step(*rows)
    for ours, reference in zip(logits, expected, strict=True):
        torch.testing.assert_close(ours[-1], reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", MODELS, ids=lambda variant: variant.name)
def test_plans_and_answers_are_those_of_an_engine_without_a_cache(variant: Variant, tmp_path: Path) -> None:
    model = TorchModel.load(variant.save(tmp_path), dtype=torch.float32, device="cpu")
    cached, plain = (serve_alike(TorchRunner(model, CACHE), enable_prefix_caching=enabled) for enabled in (True, False))
    assert (cached.answers, cached.plans) == (plain.answers, plain.plans)
    assert (cached.num_hits > 100, plain.num_hits) == (True, 0)
