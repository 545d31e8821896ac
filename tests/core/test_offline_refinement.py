"""Measuring refinement on tiny models: allocation of the layers' shares, local errors, thresholds that keep them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glass_core.errors import ConfigurationError
from glass_core.offline.calibrate.allocation import DOWN_RATIOS, UP_SHARES, LayerShares, allocate
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.local_errors import ScoreWeights, layer_errors, share_thresholds, trace_tokens
from glass_core.offline.calibrate.refinement import make_table, measure_thresholds, score_weights
from glass_core.offline.calibrate.statistics import down_norms
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement
from tests.core.sparsity_samples import property_test
from tests.parity.harness import Harness, make_row
from tests.tiny_models import VOCAB_SIZE

RNG = np.random.default_rng(5)
SEQUENCES = [
    CorpusSequence(tuple(RNG.integers(VOCAB_SIZE, size=length).tolist()), num_skipped=2, num_prompt=prompt)
    for length, prompt in ((20, 5), (14, 1), (9, 6))
]
EVERYTHING = np.arange(88, dtype=np.int32)


@pytest.fixture(scope="module")
def weights(model: TorchModel) -> ScoreWeights:
    norms = down_norms(model)
    return score_weights(np.random.default_rng(1).uniform(0.1, 1, norms.shape).astype(np.float32), norms)


def convex_errors(num_layers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    up, ratio = np.meshgrid(UP_SHARES, DOWN_RATIOS, indexing="ij")
    return np.stack([(1 - up * ratio) ** (2 + layer) + 0.3 * (1 - up) ** 2 for layer in range(num_layers)])


@property_test
@given(
    reads=st.floats(0.36, 1.0),
    weights=st.lists(st.floats(1e-6, 10), min_size=1, max_size=5),
)
def test_allocated_shares_read_exactly_what_was_asked(reads: float, weights: list[float]) -> None:
    shares = allocate(convex_errors(len(weights)), np.array(weights), reads)
    assert shares.reads == pytest.approx(reads, abs=1e-9)
    assert (shares.down <= shares.up + 1e-12).all()
    assert (shares.down > 0).all()
    assert (shares.up <= 1).all()


def test_layers_that_suffer_more_keep_more() -> None:
    shares = allocate(np.repeat(convex_errors(1), 3, axis=0), np.array([0.1, 1.0, 10.0]), 0.7)
    assert (np.diff(shares.up + shares.down) > 0.01).all()


def test_allocation_is_better_than_the_same_for_all() -> None:
    errors, weights = convex_errors(4), np.array([0.1, 0.5, 2.0, 5.0])
    shares = allocate(errors, weights, 0.6)

    def damage(up: float, down: float, layer: int) -> float:
        return float(weights[layer] * ((1 - down) ** (2 + layer) + 0.3 * (1 - up) ** 2))

    ours = sum(damage(up, down, layer) for layer, (up, down) in enumerate(zip(shares.up, shares.down, strict=True)))
    same = min(sum(damage(up, 0.8 - up, layer) for layer in range(4)) for up in np.linspace(0.4, 0.8, 81))
    assert ours < same


def test_reads_out_of_reach_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"between 0\.34\d and 1 of the FFN, got 0.3"):
        allocate(convex_errors(1), np.ones(1), 0.3)
    with pytest.raises(ConfigurationError, match=r"got 1\.01"):
        allocate(convex_errors(1), np.ones(1), 1.01)


def test_share_thresholds_keep_exactly_the_shares() -> None:
    shares = [0.5, 0.01, 0.25, 0.5, 0.99, 1.0]
    scores = torch.from_numpy(np.random.default_rng(2).gamma(1.0, size=(10, 20)))
    thresholds = share_thresholds(scores, shares)
    assert [int((scores >= threshold).sum()) for threshold in thresholds] == [100, 2, 50, 100, 198, 200]
    assert [share_thresholds(scores, [share]) for share in shares] == [[threshold] for threshold in thresholds]


def test_local_errors_are_zero_where_all_is_kept_and_fall_with_the_shares(
    model: TorchModel, weights: ScoreWeights
) -> None:
    traces = trace_tokens(model, SEQUENCES)
    assert [len(trace.z) for trace in traces] == [15 + 13 + 3] * model.spec.num_layers
    errors = layer_errors(model, 1, traces[1], weights, EVERYTHING[::2].copy())
    assert errors[-1, -1] == 0.0
    assert (np.diff(errors[:, -1]) < 0).all()
    assert (np.diff(errors[-1]) < 0).all()
    assert errors[0, 0] > 1.0


def test_a_static_half_that_loses_nothing_leaves_errors_as_they_are(model: TorchModel, weights: ScoreWeights) -> None:
    trace = trace_tokens(model, SEQUENCES)[0]
    everything = layer_errors(model, 0, trace, weights, EVERYTHING)
    assert np.isfinite(everything).all()
    assert everything[0, 0] > 0


def test_thresholds_keep_the_shares_in_the_serving_runner(
    model: TorchModel, model_dir: Path, weights: ScoreWeights
) -> None:
    shares = LayerShares(np.array([0.9, 0.5, 0.3]), np.array([0.6, 0.4, 0.1]))
    up, down = (np.array(values, np.float32) for values in measure_thresholds(model, SEQUENCES, weights, shares))
    refinement = Refinement(weights.up.numpy(), weights.down.numpy(), up, down, reads=shares.reads)
    plan = SparsityPlan("a_glass", "sensitivity", 0.5, 1 - shares.reads, 88, (EVERYTHING,) * 3, refinement=refinement)
    harness, num_tokens, reads = Harness(model_dir), 0, 0.0
    for slot, sequence in enumerate(SEQUENCES):
        prompt, answer = sequence.token_ids[: sequence.first_decoded], sequence.token_ids[sequence.first_decoded :]
        harness.feed([prompt], slot=slot)
        _, result = harness.step(make_row(answer, slot=slot, start=len(prompt), plan=plan))
        row_reads = result.rows[0].ffn_reads
        assert row_reads is not None
        reads += row_reads * len(answer)
        num_tokens += len(answer)
    # rounding moves single neurons across a threshold
    assert reads / num_tokens == pytest.approx(shares.reads, abs=2e-3)


def test_shares_of_one_need_no_thresholds(model: TorchModel, weights: ScoreWeights) -> None:
    everything = LayerShares(np.ones(3), np.ones(3))
    point = measure_thresholds(model, SEQUENCES, weights, everything)
    assert point == [[0.0] * 3] * 2
    table = make_table([0.5], [point])
    assert not table.thresholds(0.5)[0].any()
