"""Measuring refinement on tiny models: allocation of the layers' shares, local errors, thresholds that keep them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glass_core.errors import ConfigurationError
from glass_core.offline.calibrate.allocation import (
    DOWN_RATIOS,
    INPUT_SHARES,
    UP_SHARES,
    LayerShares,
    LocalErrors,
    allocate,
)
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.local_errors import layer_errors, share_thresholds, trace_tokens
from glass_core.offline.calibrate.refinement import input_weights, make_table, measure_thresholds, score_weights
from glass_core.offline.calibrate.statistics import down_norms
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement, ScoreWeights
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
    return score_weights(model, np.random.default_rng(1).uniform(0.1, 1, norms.shape).astype(np.float32), norms)


def convex_errors(num_layers: int) -> LocalErrors:
    up, ratio = np.meshgrid(UP_SHARES, DOWN_RATIOS, indexing="ij")
    inputs, layers = np.array(INPUT_SHARES), range(2, 2 + num_layers)
    return LocalErrors(
        np.stack([0.7 * (1 - inputs) ** power for power in layers]),
        np.stack([(1 - up * ratio) ** power + 0.3 * (1 - up) ** 2 for power in layers]),
    )


@property_test
@given(
    reads=st.floats(0.03, 1.0),
    weights=st.lists(st.floats(1e-6, 10), min_size=1, max_size=5),
)
def test_allocated_shares_read_exactly_what_was_asked(reads: float, weights: list[float]) -> None:
    shares = allocate(convex_errors(len(weights)), np.array(weights), reads)
    assert shares.reads == pytest.approx(reads, abs=1e-9)
    assert (shares.down <= shares.up + 1e-12).all()
    assert (shares.down > 0).all()
    assert (shares.up <= 1).all()
    assert (shares.inputs > 0).all()
    assert (shares.inputs <= 1).all()


def test_layers_that_suffer_more_keep_more() -> None:
    alike = convex_errors(1)
    errors = LocalErrors(np.repeat(alike.inputs, 3, axis=0), np.repeat(alike.neurons, 3, axis=0))
    shares = allocate(errors, np.array([0.1, 1.0, 10.0]), 0.7)
    assert (np.diff(shares.up + shares.down) > 0.01).all()
    assert (np.diff(shares.inputs) > 0.01).all()


def test_allocation_is_better_than_the_same_for_all() -> None:
    errors, weights = convex_errors(4), np.array([0.1, 0.5, 2.0, 5.0])
    shares = allocate(errors, weights, 0.6)

    def damage(inputs: float, up: float, down: float, layer: int) -> float:
        skipped = 0.7 * (1 - inputs) ** (2 + layer)
        return float(weights[layer] * (skipped + (1 - down) ** (2 + layer) + 0.3 * (1 - up) ** 2))

    ours = sum(damage(*own, layer) for layer, own in enumerate(zip(shares.inputs, shares.up, shares.down, strict=True)))
    axis = np.linspace(0.2, 1.0, 41)
    points = [(a, b, 1.8 - a - b) for a in axis for b in axis if 0 < 1.8 - a - b <= b]
    assert ours < min(sum(damage(*point, layer) for layer in range(4)) for point in points)


def test_skipping_inputs_is_chosen_only_where_it_costs_less() -> None:
    errors = convex_errors(1)
    dear, cheap = (
        allocate(LocalErrors(factor * errors.inputs, errors.neurons), np.ones(1), 0.6) for factor in (1e6, 1e-6)
    )
    assert dear.inputs[0] == pytest.approx(1.0, abs=0.02)
    assert cheap.inputs[0] == INPUT_SHARES[0]
    assert cheap.down[0] > dear.down[0]


def test_reads_out_of_reach_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"between 0\.021 and 1 of the FFN, got 0.02"):
        allocate(convex_errors(1), np.ones(1), 0.02)
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
    scores = StageTensors.of_weights(weights, model.device).of_layer(1)
    inputs, neurons = layer_errors(model.layers[1], traces[1], scores, EVERYTHING[::2].copy())
    assert inputs[-1] == neurons[-1, -1] == 0.0
    assert (np.diff(inputs) < 0).all()
    assert (np.diff(neurons[:, -1]) < 0).all()
    assert (np.diff(neurons[-1]) < 0).all()
    assert neurons[0, 0] > 1.0


def test_input_errors_are_what_the_layers_output_loses(model: TorchModel, weights: ScoreWeights) -> None:
    trace, layer = trace_tokens(model, SEQUENCES)[1], model.layers[1]
    scores = StageTensors.of_weights(weights, model.device).of_layer(1)
    inputs, _ = layer_errors(layer, trace, scores, EVERYTHING[::2].copy())
    nothing = (trace.gate * (trace.x @ layer.up_proj.T))[:, 1::2] @ layer.down_proj[1::2]
    values = trace.x.abs() * scores.inputs
    for share, found in list(zip(INPUT_SHARES, inputs, strict=True))[::4]:
        (threshold,) = share_thresholds(values, [share])
        z = trace.gate * (torch.where(values >= threshold, trace.x, 0.0) @ layer.up_proj.T)
        lost = (trace.z - z) @ layer.down_proj
        assert found == pytest.approx(float(lost.square().sum() / nothing.square().sum()), rel=1e-4)


def test_input_weights_are_the_rms_of_an_outputs_change_with_independent_neurons() -> None:
    rng = np.random.default_rng(4)
    up_proj, gains = rng.normal(size=(88, 48)).astype(np.float32), rng.gamma(1.0, size=88).astype(np.float32)
    found = input_weights(torch.from_numpy(up_proj), gains)
    # gates and directions of down are independent of one another: signs of each neuron's part are
    signs = rng.choice([-1.0, 1.0], size=(20000, 88))
    changes = (signs * gains) @ up_proj / np.sqrt(88 / 48)
    np.testing.assert_allclose(found, np.sqrt((changes**2).mean(axis=0)), rtol=0.05)


def test_a_static_half_that_loses_nothing_leaves_errors_as_they_are(model: TorchModel, weights: ScoreWeights) -> None:
    trace = trace_tokens(model, SEQUENCES)[0]
    scores = StageTensors.of_weights(weights, model.device).of_layer(0)
    for errors in layer_errors(model.layers[0], trace, scores, EVERYTHING):
        assert np.isfinite(errors).all()
        assert errors.flat[0] > 0


def test_thresholds_keep_the_shares_in_the_serving_runner(
    model: TorchModel, model_dir: Path, weights: ScoreWeights
) -> None:
    shares = LayerShares(np.array([0.7, 0.8, 0.4]), np.array([0.9, 0.5, 0.3]), np.array([0.6, 0.4, 0.1]))
    thresholds = np.array(measure_thresholds(model, SEQUENCES, weights, shares), np.float32)
    refinement = Refinement(weights, thresholds, reads=shares.reads)
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
    everything = LayerShares(np.ones(3), np.ones(3), np.ones(3))
    point = measure_thresholds(model, SEQUENCES, weights, everything)
    assert point == [[0.0] * 3] * 3
    table = make_table([0.5], [point], weights)
    assert not table.thresholds_at(0.5).any()
