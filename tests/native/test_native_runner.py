"""NativeRunner's own promises: refusals before anything is written, accounting, loading, a missing extension."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glass_core.api import SamplingParams, StepCost
from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig, EngineConfig
from glass_core.errors import CheckpointError, ConfigurationError, EngineFailureError
from glass_core.runners.base import SampleInput, StepBatch, StepResult
from glass_core.runners.native import NativeRunner, extension, load
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.sampling import sample_token
from glass_core.sparsity.flops import row_cost
from glass_core.sparsity.plan import SparsityPlan
from tests.native.harness import NativeHarness
from tests.parity.harness import NUM_BLOCKS, greedy, make_plan, make_row
from tests.parity.variants import random_tokens
from tests.tiny_models import VOCAB_SIZE, save_tiny_model

pytest.importorskip("glass_core.runners.native._native")

TOKENS = random_tokens(9)
BUDGETS = (30, 88, 7)


def plan_of(neurons: list[int], num_layers: int = 3) -> SparsityPlan:
    """The same neurons in each layer, whatever they are."""
    return SparsityPlan("griffin", "uniform", None, 0.5, 88, (np.array(neurons, np.int32),) * num_layers)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ImageHeader:
    folder = save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")
    return make_image(open_prepared(folder), "int4")


@pytest.fixture
def native(header: ImageHeader) -> NativeHarness:
    return NativeHarness(header)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tokens": ()}, "at least one token"),
        ({"tokens": (VOCAB_SIZE,)}, "outside the vocabulary"),
        ({"tokens": (1, -1)}, "outside the vocabulary"),
        ({"start": -1}, "must not be negative"),
        ({"start": 60}, "do not cover"),
        ({"block_table": (NUM_BLOCKS,) * 3}, "outside the pool"),
        ({"block_table": (-1, 0, 0)}, "outside the pool"),
        ({"snapshot_ends": (3,)}, "without collecting"),
        ({"snapshot_ends": (3, 3), "collect_statistics": True}, "must ascend"),
        ({"plan": plan_of([0, 5, 3, 9])}, r"must ascend within \[0, 88\), got 3 after 5"),
        ({"plan": plan_of([4, 4])}, r"must ascend within \[0, 88\), got 4 after 4"),
        ({"plan": plan_of([-1, 4])}, r"must ascend within \[0, 88\), got -1 after -1"),
        ({"plan": plan_of([4, 88])}, r"must ascend within \[0, 88\), got 88 after 4"),
        ({"plan": plan_of([4], num_layers=2)}, "the plan has 2 layers, the model 3"),
    ],
)
def test_a_bad_row_is_refused(native: NativeHarness, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(EngineFailureError, match=f"'sequence-0'.*{problem}"):
        native.step(make_row(**{"tokens": TOKENS, **fields}))


def test_a_bad_plan_is_refused(native: NativeHarness) -> None:
    plan = make_plan(native.spec, BUDGETS)
    unsorted = replace(plan, neurons=(plan.neurons[0][::-1].copy(), *plan.neurons[1:]))
    for bad in (
        replace(plan, neurons=plan.neurons[:2]),
        replace(plan, intermediate_size=3),
        replace(plan, neurons=(np.array([88], np.int32), *plan.neurons[1:])),
        unsorted,
    ):
        with pytest.raises(EngineFailureError, match="'sequence-0'"):
            native.step(make_row(TOKENS, plan=bad))
    with pytest.raises(EngineFailureError, match="dense rows only"):
        native.step(make_row(TOKENS, plan=plan, collect_statistics=True))


def test_two_rows_of_one_sequence_are_refused(native: NativeHarness) -> None:
    with pytest.raises(EngineFailureError, match="one row per sequence"):
        native.step(make_row(TOKENS), make_row(TOKENS))


def test_the_extension_checks_what_python_passes(native: NativeHarness) -> None:
    """Memory safety does not rest on the Python side."""
    model, frequencies = native.runner._open(), np.zeros((1, 6), np.float32)
    no_scales = np.empty(0, np.float32)
    good = {"tokens": [1, 2], "blocks": [0], "layout": [[0, 2, 1, -1, 0, 1]]}
    for name, value in [
        ("tokens", [1, VOCAB_SIZE]),
        ("tokens", [1]),
        ("blocks", [NUM_BLOCKS]),
        ("blocks", []),
        ("layout", [[3, 2, 1, -1, 0, 1]]),
        ("layout", [[-1, 2, 1, -1, 0, 1]]),
        ("layout", [[0, 2, 1, 7, 0, 1]]),
        ("layout", [[0, -1, 1, -1, 0, 1]]),
        ("layout", [[0, 2, 1, -1, 1, 1]]),
    ]:
        arrays = {key: np.array(content, np.int32) for key, content in {**good, name: value}.items()}
        with pytest.raises(ValueError, match=r"."):
            model.step(**arrays, frequencies=frequencies, statistics=[], samples=[None], scales=no_scales)
    arrays = {key: np.array(content, np.int32) for key, content in good.items()}
    with pytest.raises(ValueError, match="frequencies"):
        model.step(**arrays, frequencies=frequencies[:, :3], statistics=[], samples=[None], scales=no_scales)
    with pytest.raises(ValueError, match="one per token"):
        model.step(**arrays, frequencies=frequencies, statistics=[], samples=[], scales=no_scales)
    with pytest.raises(ValueError, match="scales: expected none or one per token"):
        model.step(**arrays, frequencies=frequencies, statistics=[], samples=[None], scales=np.ones(1, np.float32))


def test_an_empty_step_does_nothing(native: NativeHarness) -> None:
    assert native.runner.execute(StepBatch(())) == StepResult(())


def test_costs_of_single_rows_follow_the_plan(native: NativeHarness) -> None:
    plan = make_plan(native.spec, BUDGETS)
    for row in (make_row(TOKENS, sample=greedy()), make_row(TOKENS[:1], start=9, plan=plan)):
        cost = native.step(row)[1].rows[0].cost
        budgets = None if row.plan is None else row.plan.budgets
        expected = row_cost(
            native.spec,
            num_tokens=len(row.token_ids),
            num_keys=row.start + len(row.token_ids),
            num_logits=0 if row.sample is None else 1,
            budgets=budgets,
            bytes_per_weight=1.0,
        )
        no_bytes = {"ffn_bytes_dense": 0, "ffn_bytes_computed": 0, "ffn_bytes_planned": 0}
        assert replace(cost, **no_bytes) == replace(expected, **no_bytes)
        assert cost.ffn_bytes_planned == cost.ffn_bytes_computed
        assert (cost.ffn_bytes_computed == cost.ffn_bytes_dense) == (row.plan is None)


def test_costs_of_a_mixed_step_count_the_union_once(native: NativeHarness, header: ImageHeader) -> None:
    plans = [make_plan(native.spec, BUDGETS, seed=seed) for seed in (1, 2)]
    rows = [make_row(TOKENS[:1], slot=slot, plan=plan) for slot, plan in enumerate(plans)]
    costs = [row.cost for row in native.step(*rows)[1].rows]
    union = [np.union1d(*neurons) for neurons in zip(*(plan.neurons for plan in plans), strict=True)]
    row, column, scales = (header.tensors[f"layers.0.{name}"].row_bytes for name in ("gate_up", "down", "down_scales"))
    num_groups = sum(len(np.unique(neurons // 32)) for neurons in union)
    num_bytes = sum(map(len, union)) * (2 * row + column) + num_groups * scales
    assert sum(cost.ffn_bytes_computed for cost in costs) == num_bytes
    assert {cost.ffn_flops_computed for cost in costs} == {2 * 3 * 48 * sum(map(len, union))}
    ffn = (".gate_up", ".down", ".down_scales")
    assert sum(cost.ffn_bytes_dense for cost in costs) == sum(
        tensor.num_bytes for name, tensor in header.tensors.items() if name.endswith(ffn)
    )


def test_sampling_uses_the_reference_sampler(native: NativeHarness) -> None:
    sample = SampleInput(SamplingParams(max_tokens=4, seed=3, temperature=0.8, top_p=0.9), TOKENS, ())
    rows = (
        make_row(TOKENS, slot=0, sample=greedy()),
        make_row(TOKENS, slot=1),
        make_row(TOKENS, slot=2, sample=sample),
    )
    logits, result = native.step(*rows)
    assert [row.token_id for row in result.rows] == [int(logits[0].argmax()), None, sample_token(logits[1], sample)]


def test_a_sequence_may_come_with_another_plan(native: NativeHarness) -> None:
    first, second = (make_plan(native.spec, BUDGETS, seed=seed) for seed in (1, 2))
    fresh = native.feed([TOKENS], slot=1, plan=second)
    native.feed([TOKENS], plan=first)
    np.testing.assert_array_equal(native.feed([TOKENS], plan=second), fresh)
    native.runner.release("sequence-0")
    native.runner.release("unknown")
    np.testing.assert_array_equal(native.feed([TOKENS], plan=second), fresh)


def test_views_are_index_lists(native: NativeHarness) -> None:
    assert native.runner.view_bytes(BUDGETS) == 4 * (sum(BUDGETS) + 3 * 3)


def test_a_closed_runner_refuses_steps(native: NativeHarness) -> None:
    native.runner.close()
    native.runner.release("sequence-0")
    with pytest.raises(EngineFailureError, match="closed"):
        native.runner.execute(StepBatch((make_row(TOKENS),)))
    with pytest.raises(EngineFailureError, match="closed"):
        native.runner.execute(StepBatch((make_row(TOKENS, plan=make_plan(native.spec, BUDGETS)),)))


def config(folder: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(**{"model_path": folder, "model_name": "tiny", "runner": "native", "dtype": "int4", **changes})


def test_load_describes_the_model(header: ImageHeader) -> None:
    runner = load(config(header.path.parent, num_threads=1))
    assert runner.fingerprint == header.fingerprint == open_prepared(header.path.parent).fingerprint
    assert (runner.device, runner.format, runner.spec) == ("cpu", "int4", header.spec)
    assert runner.num_parameters == 300 * 48 + 48 + 3 * (2 * 48 + 48 * 48 * 2 + 24 * 48 * 2 + 3 * 48 * 88)
    assert runner.num_kv_blocks == (1 << 30) // (2 * 3 * 16 * 24 * 2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"device": "cuda"}, "device must be cpu"),
        ({"dtype": "float16"}, "dtype"),
        ({"cache": CacheConfig(kv_cache_bytes=1)}, "kv_cache_bytes"),
        ({"num_threads": 0}, "num_threads"),
    ],
)
def test_a_wrong_setting_is_named(header: ImageHeader, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        load(config(header.path.parent, **changes))


def test_the_instruction_set_can_be_chosen(header: ImageHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_CPU_ISA", "portable")
    assert load(config(header.path.parent)).isa == "portable"
    monkeypatch.setenv("GLASS_CPU_ISA", "mmx")
    with pytest.raises(ConfigurationError, match=r"'mmx'.*available.*portable"):
        load(config(header.path.parent))


def test_a_missing_extension_is_explained(header: ImageHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_NAME", "glass_core.runners.native._not_built")
    with pytest.raises(ConfigurationError, match=r"_not_built.*compiler"):
        load(config(header.path.parent))
    assert "compiler" in (extension.why_missing() or "")


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("norm", {"num_bytes": 4}, "norm"),
        ("norm", {"kind": "rows_q4"}, "expected f32"),
        ("embed_tokens", {"shape": (301, 48)}, "too few for its rows"),
        ("embed_tokens", {"shape": (299, 48)}, "the model asks for 300"),
        ("layers.1.qkv", {"row_bytes": 8}, "too short rows"),
        ("layers.1.qkv", {"offset": 1 << 40}, "outside the payload"),
        ("layers.1.qkv", {"offset": 32}, "multiple of 64"),
        ("layers.2.down", {"row_bytes": 8}, "too few bytes"),
        ("layers.2.down", {"kind": "rows_q4"}, "expected columns"),
        ("layers.2.down", {"shape": (88, 40)}, r"other than \[88, 48\]"),
        (
            "layers.2.gate_up",
            {"kind": "rows_q8", "row_bytes": 72, "num_bytes": 176 * 72},
            "not of the image's own format",
        ),
        ("layers.2.down_scales", {"num_bytes": 64, "shape": (1, 1), "row_bytes": 64}, "too few bytes"),
        ("layers.2.down_scales", {"kind": "f32"}, "expected column_scales"),
        ("layers.0.input_scales", {"kind": "column_scales"}, "expected coded_scales"),
        ("layers.0.input_units", {"kind": "coded_scales"}, "expected scale_units"),
        ("layers.0.input_units", {"num_bytes": 64, "shape": (1, 1), "row_bytes": 64}, "too few bytes"),
    ],
)
def test_a_lying_table_is_refused(header: ImageHeader, name: str, changes: dict[str, Any], problem: str) -> None:
    """The extension checks every tensor against the mapping and the model, whatever the header said."""
    tensors = {**header.tensors, name: replace(header.tensors[name], **changes)}
    with pytest.raises(CheckpointError, match=problem):
        NativeRunner(replace(header, tensors=tensors), CacheConfig())


def test_a_truncated_or_incomplete_image_is_refused(header: ImageHeader) -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        NativeRunner(replace(header, payload_bytes=header.payload_bytes + 1), CacheConfig())
    with pytest.raises(CheckpointError, match=r"layers\.1\.o.*missing"):
        without = {name: tensor for name, tensor in header.tensors.items() if name != "layers.1.o"}
        NativeRunner(replace(header, tensors=without), CacheConfig())


def test_cost_adds_up(native: NativeHarness) -> None:
    rows = [make_row(TOKENS[:3], slot=slot) for slot in range(3)]
    total = sum((row.cost for row in native.step(*rows)[1].rows), StepCost())
    single = native.step(make_row(TOKENS[:3], slot=4))[1].rows[0].cost
    assert total.ffn_bytes_dense == total.ffn_bytes_computed == single.ffn_bytes_computed
    assert total.flops_computed == 3 * single.flops_computed
