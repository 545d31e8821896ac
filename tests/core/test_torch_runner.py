"""TorchRunner's own promises: memory accounting, refusals, sampling, loading, gradients."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glass_core.api import SamplingParams
from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig, EngineConfig
from glass_core.engine.loading import load_runner
from glass_core.errors import CheckpointError, ConfigurationError, EngineFailureError
from glass_core.runners.base import SampleInput, StepBatch, StepRow
from glass_core.runners.sampling import sample_token, token_logprobs
from glass_core.runners.torch_runner import load
from glass_core.runners.torch_runner.attention import SequenceCache
from glass_core.runners.torch_runner.drawing import draw_tokens
from glass_core.runners.torch_runner.kv_pool import block_bytes
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.statistics import StatisticsCollector
from glass_core.runners.torch_runner.views import PackedViews, pack
from glass_core.runners.torch_runner.weights import load_weights
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import STAGES, Refinement, ScoreWeights
from tests.parity.harness import NUM_BLOCKS, Harness, greedy, make_plan, make_row
from tests.tiny_models import save_tiny_model, tiny_model

BUDGETS = (30, 88, 7)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def harness(model_dir: Path) -> Harness:
    return Harness(model_dir)


def config(model_dir: Path, **changes: Any) -> EngineConfig:
    cache = CacheConfig(block_size=4, kv_cache_bytes=1 << 20)
    return EngineConfig(model_path=model_dir, model_name="tiny", cache=cache, **changes)


def copied_bytes(model: TorchModel, views: PackedViews) -> int:
    """Bytes of the tensors a plan's views hold and the model does not."""
    own = {id(layer.ffn) for layer in model.layers}
    packed = [pack(layer.ffn, neurons) for layer, neurons in zip(model.layers, views.plan.neurons, strict=True)]
    tensors = [
        tensor
        for weights in packed
        if id(weights) not in own
        for tensor in (weights.gate_up, weights.down_proj, weights.gate_up_bias)
        if tensor is not None
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mlp_bias", [False, True])
def test_view_bytes_are_the_bytes_of_the_packed_tensors(tmp_path: Path, mlp_bias: bool, dtype: torch.dtype) -> None:
    harness = Harness(save_tiny_model(tmp_path, "llama", mlp_bias=mlp_bias), dtype)
    plan = make_plan(harness.spec, BUDGETS)
    expected = copied_bytes(harness.model, PackedViews(harness.model, plan))
    assert expected > 0
    assert harness.runner.view_bytes(BUDGETS) == expected
    harness.step(make_row([1, 2], plan=plan))
    assert harness.runner.view_bytes_used == expected


def test_views_live_until_release_and_follow_the_plan(harness: Harness) -> None:
    first, second = make_plan(harness.spec, BUDGETS), make_plan(harness.spec, (5, 5, 5))
    runner = harness.runner
    harness.step(make_row([1], plan=first), make_row([1], slot=1, plan=first))
    assert runner.view_bytes_used == 2 * runner.view_bytes(BUDGETS)
    harness.step(make_row([1], start=1, plan=second))
    assert runner.view_bytes_used == runner.view_bytes(BUDGETS) + runner.view_bytes((5, 5, 5))
    runner.release("sequence-0")
    assert runner.view_bytes_used == runner.view_bytes(BUDGETS)
    runner.release("sequence-0")
    runner.release("never seen")
    runner.close()
    assert runner.view_bytes_used == 0


def test_another_plan_of_the_same_sequence_changes_the_answer(harness: Harness) -> None:
    plans = [make_plan(harness.spec, (9, 9, 9), seed=seed) for seed in (1, 2)]
    first, second, again = (harness.feed([[1, 2, 3]], plan=plan) for plan in (*plans, plans[0]))
    assert torch.equal(first, again)
    assert not torch.allclose(first, second, atol=1e-2)


def test_the_pool_fills_its_budget(model_dir: Path) -> None:
    harness = Harness(model_dir)
    assert block_bytes(harness.spec, 4, torch.float32) == 2 * 3 * 4 * 2 * 12 * 4
    assert harness.runner.num_kv_blocks == NUM_BLOCKS
    assert load(config(model_dir)).num_kv_blocks == (1 << 20) // 2304
    assert load(config(model_dir, dtype="bfloat16")).num_kv_blocks == (1 << 20) // 1152


def test_a_pool_without_a_block_is_refused(model_dir: Path) -> None:
    cache = CacheConfig(block_size=16, kv_cache_bytes=100)
    with pytest.raises(ConfigurationError, match=r"kv_cache_bytes \(100\) .* 9216 bytes"):
        load(replace(config(model_dir), cache=cache))


def test_an_int8_cache_is_refused(model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="kv_cache_dtype 'int8' needs the native runner"):
        load(replace(config(model_dir), cache=CacheConfig(kv_cache_dtype="int8")))


def bad_plan(neurons: Sequence[int], num_layers: int, intermediate_size: int) -> SparsityPlan:
    layer = np.asarray(neurons, dtype=np.int32)
    return SparsityPlan("random", "uniform", None, 0.5, intermediate_size, (layer,) * num_layers)


def refined_plan(num_layers: int) -> SparsityPlan:
    """A good plan of three layers, whose refinement has `num_layers`."""
    return refined_for(num_layers, 88, 48)


def refined_for(num_layers: int, num_neurons: int, num_inputs: int) -> SparsityPlan:
    """A good plan of three layers of 88 neurons, whose refinement is for another model."""
    ones, inputs = (np.ones((num_layers, size), np.float32) for size in (num_neurons, num_inputs))
    thresholds = np.zeros((len(STAGES), num_layers), np.float32)
    return replace(bad_plan([1], 3, 88), refinement=Refinement(ScoreWeights(inputs, ones), thresholds, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": ()}, "at least one token"),
        ({"token_ids": (1, 300)}, r"token id 300 lies outside the vocabulary \[0, 300\)"),
        ({"token_ids": (-1,)}, "token id -1"),
        ({"start": -1}, "start must not be negative, got -1"),
        ({"start": 63, "token_ids": (1, 2)}, "16 blocks of 4 do not cover 65 positions"),
        ({"block_table": (NUM_BLOCKS,)}, "block 96 lies outside the pool"),
        ({"block_table": (-1,)}, "block -1 lies outside the pool"),
        ({"plan": bad_plan([1], 2, 88)}, "the plan has 2 layers, the model 3"),
        ({"plan": bad_plan([1], 3, 80)}, "the plan is for 80 neurons a layer, the model has 88"),
        ({"plan": bad_plan([1, 88], 3, 88)}, r"layer 0 of the plan has neurons outside \[0, 88\)"),
        ({"plan": bad_plan([-1, 5], 3, 88)}, "layer 0 of the plan has neurons outside"),
        ({"plan": bad_plan([1], 3, 88), "collect_statistics": True}, "dense rows only"),
        ({"plan": refined_plan(2)}, r"the plan's refinement has sizes \(2, 88, 48\), the model \(3, 88, 48\)"),
        ({"plan": refined_for(3, 80, 48)}, r"refinement has sizes \(3, 80, 48\), the model \(3, 88, 48\)"),
        ({"plan": refined_for(3, 88, 40)}, r"refinement has sizes \(3, 88, 40\), the model \(3, 88, 48\)"),
        ({"plan": bad_plan([1], 3, 88), "refine_scales": (1.0,)}, "refine_scales without a refined plan"),
        ({"plan": refined_plan(3), "refine_scales": (1.0, 1.0)}, "2 refine_scales for 1 tokens"),
        ({"plan": refined_plan(3), "refine_scales": (0.0,)}, "refine_scales must be positive"),
    ],
)
def test_rows_that_cannot_run_are_refused_and_leave_no_trace(
    harness: Harness, change: dict[str, Any], message: str
) -> None:
    expected = harness.feed([[1, 2, 3], [4]])
    harness.feed([[1, 2, 3]])
    bad = replace(make_row([1], slot=1), **change)
    with pytest.raises(EngineFailureError, match=f"'sequence-1': .*{message}"):
        harness.runner.execute(StepBatch((make_row([9], start=2), bad)))
    assert torch.equal(harness.feed([[4]], start=3), expected[3:])


def test_two_rows_of_one_sequence_are_refused(harness: Harness) -> None:
    with pytest.raises(EngineFailureError, match="one row per sequence"):
        harness.runner.execute(StepBatch((make_row([1]), make_row([2], start=1))))


def test_an_empty_batch_is_an_empty_result(harness: Harness) -> None:
    assert harness.runner.execute(StepBatch(())).rows == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fail_their_row_alone(bad: float) -> None:
    logits = torch.arange(10.0).reshape(2, 5)
    logits[1, 3] = bad
    fine, failed = draw_tokens(logits, [greedy(), greedy()])
    assert (fine.token_id, fine.error) == (4, None)
    assert failed.token_id is None
    assert failed.error is not None and "not finite" in failed.error


def test_a_row_that_may_draw_nothing_fails_alone() -> None:
    params = SamplingParams(max_tokens=9, seed=0, min_tokens=1, stop_token_ids=(0, 1))
    fine, failed = draw_tokens(torch.zeros(2, 2), [greedy(), SampleInput(params, (1,), ())])
    assert (fine.token_id, failed.token_id) == (0, None)
    assert failed.error is not None and "min_tokens" in failed.error


def test_log_probabilities_come_where_they_are_asked_for(harness: Harness) -> None:
    wanted = replace(greedy().params, num_logprobs=2)
    rows = [
        make_row([1, 2, 3], slot=0, sample=greedy()),
        make_row([4, 5], slot=1, sample=SampleInput(wanted, (4, 5), ())),
    ]
    logits, result = harness.step(*rows)
    plain, detailed = result.rows
    assert plain.logprobs is None
    assert detailed.token_id is not None and detailed.logprobs is not None
    expected = token_logprobs(logits[1][-1].numpy(), detailed.token_id, 2)
    assert detailed.logprobs.logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert [token for token, _ in detailed.logprobs.top] == [token for token, _ in expected.top]


def test_sampled_rows_follow_the_reference_sampler(harness: Harness) -> None:
    def sample(generated: tuple[int, ...], **params: Any) -> SampleInput:
        return SampleInput(SamplingParams(max_tokens=9, **params), (1, 2, 3), generated)

    samples = [
        sample((), seed=1),
        sample((5,), seed=1, temperature=3.0),
        sample((5,), seed=2, temperature=0.0, repetition_penalty=1.7),
        sample((), seed=0, temperature=0.0),
    ]
    rows = [make_row([1, 2, 3], slot=slot, sample=sample) for slot, sample in enumerate(samples)]
    logits, result = harness.step(*rows)
    expected = [sample_token(row[-1].numpy(), sample) for row, sample in zip(logits, samples, strict=True)]
    assert [row.token_id for row in result.rows] == expected
    # alone, and in another order, the same tokens are drawn
    _, reordered = harness.step(*reversed(rows))
    assert [row.token_id for row in reversed(reordered.rows)] == expected


def test_statistics_of_zero_and_of_extreme_activations_stay_finite(harness: Harness) -> None:
    z = torch.zeros(4, 88)
    z[1, 3], z[2, 3], z[2, 4], z[3, 5] = 1e-30, 3e25, -4e25, 2.0
    collector = StatisticsCollector(harness.spec, 4)
    collector.add(1, z)
    statistics = collector.result()
    assert statistics.num_tokens == 4
    np.testing.assert_allclose(statistics.sum_abs[1, 3:6], [1.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(statistics.sum_squares[1, 3:6], [1.36, 0.64, 1.0], rtol=1e-6)
    assert statistics.sum_abs.sum() == pytest.approx(3.4)


def test_collected_statistics_equal_the_reference_definition(harness: Harness) -> None:
    z = torch.randn(3, 9, 88, generator=torch.Generator().manual_seed(0))
    collector = StatisticsCollector(harness.spec, 9)
    for layer in range(3):
        collector.add(layer, z[layer])
    statistics, expected = collector.result(), LocalStatistics.from_activations(z.numpy())
    assert statistics.num_tokens == expected.num_tokens
    np.testing.assert_allclose(statistics.sum_abs, expected.sum_abs, rtol=1e-5)
    np.testing.assert_allclose(statistics.sum_squares, expected.sum_squares, rtol=1e-5)


def test_an_unknown_runner_is_refused(model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no runner 'abacus'; available: .*torch_runner"):
        load_runner(config(model_dir, runner="abacus"))


def test_identity_size_and_magnitudes(model_dir: Path) -> None:
    runner = load_runner(config(model_dir, runner="torch_runner", num_threads=torch.get_num_threads()))
    hf_model = tiny_model("llama")
    assert runner.num_parameters == sum(parameter.numel() for parameter in hf_model.parameters())
    assert runner.fingerprint == open_prepared(model_dir).fingerprint
    assert (runner.device, runner.spec.model_type) == ("cpu", "llama")
    layers: Any = hf_model.model.layers
    expected = [
        layer.mlp.gate_proj.weight.norm(dim=1).detach() * layer.mlp.up_proj.weight.norm(dim=1).detach()
        for layer in layers
    ]
    np.testing.assert_allclose(runner.neuron_magnitudes(), torch.stack(expected).numpy(), rtol=1e-5)


def test_num_parameters_counts_an_untied_head(tmp_path: Path) -> None:
    overrides: dict[str, Any] = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
    runner = load(config(save_tiny_model(tmp_path, "llama", **overrides)))
    assert runner.num_parameters == sum(p.numel() for p in tiny_model("llama", **overrides).parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16 .* got 'float16'"),
        ({"device": "gpu"}, "device must be cpu or cuda, got 'gpu'"),
        ({"device": "meta"}, "device must be cpu or cuda, got 'meta'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(model_dir: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(config(model_dir, **changes))


def test_cuda_without_cuda_is_refused(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="'cuda' was asked for"):
        load(config(model_dir, device="cuda"))


def test_a_tensor_the_spec_needs_but_the_checkpoint_lacks(model_dir: Path) -> None:
    checkpoint = open_prepared(model_dir)
    tensors = {name: ref for name, ref in checkpoint.tensors.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"no tensor 'norm\.weight'"):
        load_weights(replace(checkpoint, tensors=tensors), torch.float32, "cpu")


def test_files_that_change_after_opening_are_reported(model_dir: Path, tmp_path: Path) -> None:
    checkpoint = open_prepared(model_dir)
    weights = load_file(model_dir / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "truncated.safetensors").write_bytes(b"\x10")
    for name, message in (("model", "cannot read tensor"), ("truncated", "not a readable safetensors file")):
        path = tmp_path / f"{name}.safetensors"
        tensors = {canonical: replace(ref, path=path) for canonical, ref in checkpoint.tensors.items()}
        with pytest.raises(CheckpointError, match=message):
            load_weights(replace(checkpoint, tensors=tensors), torch.float32, "cpu")


def test_neuron_major_down_projection_and_views_of_gate_and_up(model_dir: Path) -> None:
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    layers: Any = tiny_model("llama").model.layers
    for layer, hf_layer in zip(model.layers, layers, strict=True):
        assert torch.equal(layer.gate_proj, hf_layer.mlp.gate_proj.weight)
        assert torch.equal(layer.up_proj, hf_layer.mlp.up_proj.weight)
        assert torch.equal(layer.down_proj, hf_layer.mlp.down_proj.weight.t())
        assert layer.down_proj.is_contiguous()


def test_gradients_of_the_loss_with_respect_to_z_equal_autograd_through_hf(model_dir: Path) -> None:
    tokens = torch.tensor([5, 9, 200, 7, 31, 8])
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    activations: list[torch.Tensor] = []

    def ffn(layer: int, x: torch.Tensor) -> torch.Tensor:
        z = model.ffn_activation(layer, x)
        if not z.requires_grad:  # the first layer: nothing before it needs a gradient
            z = z.requires_grad_()
        activations.append(z)
        return model.ffn_output(layer, z)

    hidden = model.forward(tokens, torch.arange(6), attention=SequenceCache(model.spec), ffn=ffn)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden[:-1]), tokens[1:], reduction="sum")
    gradients = torch.autograd.grad(loss, activations)

    hf_model: Any = tiny_model("llama")
    expected: list[torch.Tensor] = []
    for layer in hf_model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: expected.append(inputs[0]))
    mean_loss = hf_model(tokens[None], labels=tokens[None]).loss  # over five predictions
    for ours, theirs in zip(gradients, torch.autograd.grad(5 * mean_loss, expected), strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=1e-3)


def test_a_row_is_placed_by_its_table_alone(harness: Harness) -> None:
    """Blocks of one sequence may be shared out again once it is gone: the new owner's answer is its own."""
    expected = harness.feed([[1, 2, 3, 4, 5, 6]])
    other = StepRow("other", (9, 8, 7, 6, 5, 4, 3), 0, make_row([1]).block_table)
    harness.step(other)
    assert torch.equal(harness.feed([[1, 2, 3, 4, 5, 6]], sequence_id="new"), expected)
