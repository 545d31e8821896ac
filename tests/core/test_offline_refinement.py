"""Measuring refinement on tiny models: allocation of the layers' shares, local errors, thresholds that keep them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from glass_core.errors import ConfigurationError
from glass_core.offline.calibrate.allocation import (
    DOWN_SHARES,
    INPUT_SHARES,
    FloatArray,
    LayerShares,
    LocalErrors,
    allocate,
)
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.local_errors import LayerTokens, layer_errors, share_thresholds, trace_tokens
from glass_core.offline.calibrate.refinement import input_weights, make_table, measure_thresholds, score_weights
from glass_core.offline.calibrate.statistics import down_norms
from glass_core.runners.torch_runner.cascade import StageTensors
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.plan import NeuronIndices, SparsityPlan
from glass_core.sparsity.refinement import STAGES, Refinement, ScoreWeights
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
    gates, slopes = np.random.default_rng(1).uniform(0.1, 1, (2, *norms.shape)).astype(np.float32)
    return score_weights(model, gates, slopes, norms)


def convex_errors(num_layers: int) -> LocalErrors:
    inputs, down, layers = np.array(INPUT_SHARES), np.array(DOWN_SHARES), range(2, 2 + num_layers)
    return LocalErrors(
        np.stack([0.7 * (1 - inputs) ** power for power in layers]),
        np.stack([(1 - down) ** power for power in layers]),
    )


@property_test
@given(
    reads=st.floats(0.031, 1.0),
    weights=st.lists(st.floats(1e-6, 10), min_size=1, max_size=5),
)
def test_allocated_shares_read_exactly_what_was_asked(reads: float, weights: list[float]) -> None:
    shares = allocate(convex_errors(len(weights)), np.array(weights), reads)
    assert shares.reads == pytest.approx(reads, abs=1e-9)
    assert np.mean(2 * shares.inputs + shares.down) / 3 == pytest.approx(reads, abs=1e-9)
    for part, grid in ((shares.inputs, INPUT_SHARES), (shares.down, DOWN_SHARES)):
        assert (part >= grid[0] - 1e-12).all()
        assert (part <= 1 + 1e-12).all()


def test_layers_that_suffer_more_keep_more() -> None:
    alike = convex_errors(1)
    errors = LocalErrors(np.repeat(alike.inputs, 3, axis=0), np.repeat(alike.down, 3, axis=0))
    shares = allocate(errors, np.array([0.1, 1.0, 10.0]), 0.7)
    assert (np.diff(shares.down) > 0.01).all()
    assert (np.diff(shares.inputs) > 0.01).all()


def test_allocation_is_better_than_the_same_for_all() -> None:
    errors, weights = convex_errors(4), np.array([0.1, 0.5, 2.0, 5.0])
    shares = allocate(errors, weights, 0.6)

    def damage(inputs: float, down: float, layer: int) -> float:
        return float(weights[layer] * (0.7 * (1 - inputs) ** (2 + layer) + (1 - down) ** (2 + layer)))

    ours = sum(damage(*own, layer) for layer, own in enumerate(zip(shares.inputs, shares.down, strict=True)))
    points = [(inputs, 1.8 - 2 * inputs) for inputs in np.linspace(0.4, 0.9, 501)]
    assert ours < min(sum(damage(*point, layer) for layer in range(4)) for point in points)


def test_inputs_are_twice_as_dear_as_down_columns() -> None:
    """Where both lose alike, the least damage has a slope of inputs twice that of down: Lagrange, in closed form."""
    errors = LocalErrors(*(np.array([[(1 - share) ** 2 for share in grid]]) for grid in (INPUT_SHARES, DOWN_SHARES)))
    shares = allocate(errors, np.ones(1), 0.7)
    # 2 a + b = 2.1 and 1 - a = 2 (1 - b)
    assert shares.inputs[0] == pytest.approx(0.64, abs=0.02)
    assert shares.down[0] == pytest.approx(0.82, abs=0.03)


def test_skipping_inputs_is_chosen_only_where_it_costs_less() -> None:
    errors = convex_errors(1)
    dear, cheap = (
        allocate(LocalErrors(factor * errors.inputs, errors.down), np.ones(1), 0.7) for factor in (1e6, 1e-6)
    )
    assert dear.inputs[0] == pytest.approx(1.0, abs=0.02)
    assert cheap.down[0] == pytest.approx(1.0, abs=0.02)
    assert allocate(LocalErrors(1e-6 * errors.inputs, errors.down), np.ones(1), 0.2).inputs[0] == INPUT_SHARES[0]


def test_reads_out_of_reach_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"between 0\.030 and 1 of the FFN, got 0.02"):
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
    tokens = trace_tokens(model, SEQUENCES)
    assert [len(layer.z) for layer in tokens] == [15 + 13 + 3] * model.spec.num_layers
    inputs, down = errors_of(model, weights, tokens[1], 1, EVERYTHING[::2].copy())
    assert inputs[-1] == pytest.approx(0.0, abs=1e-12)
    assert down[-1] == 0.0
    assert (np.diff(inputs) < 0).all()
    assert (np.diff(down) < 0).all()
    assert down[0] > 1.0


def errors_of(
    model: TorchModel, weights: ScoreWeights, tokens: LayerTokens, layer: int, static: NeuronIndices
) -> tuple[FloatArray, FloatArray]:
    scores = StageTensors.of_weights(weights, model.device).of_layer(layer)
    return layer_errors(model.layers[layer].ffn, model.spec.activation, tokens, scores, static)


def kept_values(values: Tensor, weights: FloatArray, share: float) -> Tensor:
    """`values` (n, k) where their weighted magnitude is among the largest, 0 elsewhere: by sorting."""
    scores = (values.abs() * torch.from_numpy(weights)).flatten()
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.argsort(descending=True)[: round(share * scores.numel())]] = True
    return torch.where(kept.view_as(values), values, 0.0)


def test_local_errors_are_what_the_layers_output_loses(model: TorchModel, weights: ScoreWeights) -> None:
    tokens, layer = trace_tokens(model, SEQUENCES)[1], model.layers[1]
    inputs, down = errors_of(model, weights, tokens, 1, EVERYTHING[::2].copy())

    def output(x: Tensor, kept: slice = slice(None)) -> Tensor:
        z = functional.silu(x @ layer.gate_proj.T) * (x @ layer.up_proj.T)
        return z[:, kept] @ layer.down_proj[kept]

    unit = float(output(tokens.x, slice(1, None, 2)).square().sum())
    for share, found in list(zip(INPUT_SHARES, inputs, strict=True))[::4]:
        lost = output(tokens.x) - output(kept_values(tokens.x, weights.inputs[1], share))
        assert found == pytest.approx(float(lost.square().sum()) / unit, rel=1e-4, abs=1e-9)
    for share, found in list(zip(DOWN_SHARES, down, strict=True))[::4]:
        lost = (tokens.z - kept_values(tokens.z, weights.down[1], share)) @ layer.down_proj
        assert found == pytest.approx(float(lost.square().sum()) / unit, rel=1e-4, abs=1e-9)


def test_input_weights_are_the_rms_of_an_outputs_change_with_independent_neurons(model: TorchModel) -> None:
    rng, layer = np.random.default_rng(4), model.layers[1]
    up_gains, gate_gains = rng.gamma(1.0, size=(2, 88)).astype(np.float32)
    found = input_weights(layer, up_gains, gate_gains)
    # what u and the gate do, and directions of down, are independent of one another: signs of each neuron's parts are
    signs = rng.choice([-1.0, 1.0], size=(2, 20000, 88))
    changes = (signs[0] * up_gains) @ layer.up_proj.numpy() + (signs[1] * gate_gains) @ layer.gate_proj.numpy()
    expected = np.sqrt((changes**2).mean(axis=0) * model.spec.hidden_size / (2 * 88))
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_default_weights_predict_what_the_output_loses_with_one_input(model: TorchModel, model_dir: Path) -> None:
    """Of statistics of the same tokens: a small part of each input taken away, all else dense."""
    tokens, layer, index = trace_tokens(model, SEQUENCES)[1], model.layers[1], 1
    pre_gate, up = tokens.x @ layer.gate_proj.T, tokens.x @ layer.up_proj.T
    slopes = torch.func.vmap(torch.func.vmap(torch.func.grad(functional.silu)))(pre_gate)
    rms = [values.square().mean(dim=0).sqrt().numpy() for values in (functional.silu(pre_gate), up * slopes)]
    by_layer = [np.stack([values] * model.spec.num_layers) for values in rms]
    weights = score_weights(model, by_layer[0], by_layer[1], down_norms(model))

    def lost(i: int, step: float = 1e-2) -> float:
        """Root-mean-square over tokens, summed as if neurons' parts of the output were orthogonal, per unit of x_i."""
        gate = functional.silu(pre_gate - step * layer.gate_proj[:, i])
        change = (tokens.z - gate * (up - step * layer.up_proj[:, i])) / step
        return float((change.square().mean(dim=0) * layer.down_proj.square().sum(dim=1)).sum().sqrt())

    found = weights.inputs[index] / np.sqrt(model.spec.hidden_size / (2 * 88))
    # g and u act' of a neuron are not quite independent
    np.testing.assert_allclose(found, [lost(i) for i in range(model.spec.hidden_size)], rtol=0.1)


def test_a_static_half_that_loses_nothing_leaves_errors_as_they_are(model: TorchModel, weights: ScoreWeights) -> None:
    tokens = trace_tokens(model, SEQUENCES)[0]
    for errors in errors_of(model, weights, tokens, 0, EVERYTHING):
        assert np.isfinite(errors).all()
        assert errors.flat[0] > 0


def test_thresholds_keep_the_shares_in_the_serving_runner(
    model: TorchModel, model_dir: Path, weights: ScoreWeights
) -> None:
    shares = LayerShares(np.array([0.7, 0.8, 0.4]), np.array([0.6, 0.4, 0.1]))
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
    everything = LayerShares(np.ones(3), np.ones(3))
    point = measure_thresholds(model, SEQUENCES, weights, everything)
    assert point == [[0.0] * 3] * len(STAGES)
    table = make_table([0.5], [point], weights)
    assert not table.thresholds_at(0.5).any()
