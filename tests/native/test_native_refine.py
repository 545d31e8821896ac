"""Refined rows in the native runner: against the torch runner's cascades on the same weights, at the extremes, in
batches and chunks, and to the last byte counted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glass_core.api import StepCost
from glass_core.errors import EngineFailureError
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import RowResult, StepRow
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.scoring import ForcedText, NativeRowScorer, NativeScorer
from glass_core.runners.native.types import Floats
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement, ScoreWeights
from tests.native.harness import FORMATS, NativeHarness, correlation_error, make_header, save_decoded
from tests.parity.harness import Harness, greedy, make_plan, make_row, singles, split
from tests.parity.variants import FEW_VARIANTS, Variant, random_tokens

ISAS = pytest.importorskip("glass_core.runners.native._native").kernels.available_isas()
ODD_SIZES = Variant("qwen3-odd-sizes", "qwen3", {"hidden_size": 104, "intermediate_size": 200})
MLP_BIAS = Variant("llama-mlp-bias", "llama", {"mlp_bias": True, "num_key_value_heads": 1})
VARIANTS = (*FEW_VARIANTS, MLP_BIAS, ODD_SIZES)
PROMPT = random_tokens(9, seed=1)
ANSWER = random_tokens(8, seed=2)
SCALES = (0.5, 1.0, 2.0, 1.0, 0.25, 3.0, 1.0, 1.5)
TOLERANCE = {"bf16": 0.015, "int8": 0.08, "int4": 0.08}
COLUMNS = (".inputs", ".input_scales", ".input_units")


def by_name(variant: Variant) -> str:
    return variant.name


def refine(plan: SparsityPlan, weights: ScoreWeights, *thresholds: float) -> SparsityPlan:
    """The plan with these score weights, and the same thresholds, of inputs and down, for all layers."""
    by_layer = np.tile(np.array(thresholds, np.float32)[:, None], (1, len(weights.down)))
    return replace(plan, refinement=Refinement(weights, by_layer, reads=0.5))


def sizes_of(spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    return tuple((spec.num_layers, size) for size in (spec.hidden_size, spec.intermediate_size))


def some_scores(spec: ModelSpec, seed: int = 3) -> ScoreWeights:
    rng = np.random.default_rng(seed)
    return ScoreWeights(*(rng.uniform(0.5, 2.0, shape).astype(np.float32) for shape in sizes_of(spec)))


def drop_some(
    spec: ModelSpec,
    pool: Sequence[int],
    *,
    input_threshold: float = 0.5,
    down_threshold: float = 0.04,
    seed: int = 0,
) -> SparsityPlan:
    """What a token keeps depends on its scores; at scale 1 each stage keeps and drops many."""
    plan = make_plan(spec, pool, seed=seed)
    return refine(plan, some_scores(spec, seed), input_threshold, down_threshold)


def far_from_thresholds(spec: ModelSpec, pool: Sequence[int]) -> SparsityPlan:
    """Scores are either 0 or huge, so rounding decides nothing: each stage keeps about half of what it is given."""
    rng = np.random.default_rng(5)
    masks = [(rng.random(shape) < 0.5).astype(np.float32) for shape in sizes_of(spec)]
    factors = (np.float32(factor) for factor in (1e9, 1e12))
    weights = ScoreWeights(*(mask * factor for mask, factor in zip(masks, factors, strict=True)))
    return refine(make_plan(spec, pool, seed=1), weights, 1e-3, 1e-3)


def full_pool(spec: ModelSpec) -> tuple[int, ...]:
    return (spec.intermediate_size,) * spec.num_layers


def pair(header: ImageHeader, folder: Path) -> tuple[NativeHarness, Harness]:
    """Both runners on the weights of an image in `folder`/model."""
    return NativeHarness(header), Harness(save_decoded(header, folder / "model", folder / "decoded"))


def reads_of(result: RowResult) -> float:
    assert result.ffn_reads is not None
    return result.ffn_reads


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS, ids=by_name)
def test_a_cascade_equals_torch(variant: Variant, image_format: str, tmp_path: Path) -> None:
    header = make_header(variant, tmp_path / "model", image_format)
    native, torch_runner = pair(header, tmp_path)
    m = native.spec.intermediate_size
    for pool in (full_pool(native.spec), (m // 2, m, 7)):
        plan = far_from_thresholds(native.spec, pool)
        row = make_row(ANSWER, start=len(PROMPT), plan=plan, refine_scales=SCALES, sample=greedy())
        native.feed([PROMPT])
        torch_runner.feed([PROMPT])
        actual, ours = native.step(row)
        expected, theirs = torch_runner.step(row)
        assert correlation_error(actual[-1], expected[0].numpy()[-1]) < TOLERANCE[image_format]
        # but for a neuron whose activation underflows
        assert abs(reads_of(ours.rows[0]) - reads_of(theirs.rows[0])) < 0.001


def test_scores_choose_the_neurons_that_torch_chooses(tmp_path: Path) -> None:
    """But for the few whose scores lie within rounding of their threshold: an input that one side alone keeps changes a
    small model's token, so most tokens have to agree."""
    header = make_header(FEW_VARIANTS[0], tmp_path / "model", "bf16")
    native, torch_runner = pair(header, tmp_path)
    plan = drop_some(native.spec, full_pool(native.spec), input_threshold=0.1)
    shares, errors = [], []
    for token, scale in zip(ANSWER, SCALES, strict=True):
        row = make_row([token], plan=plan, refine_scales=(scale,), sample=greedy())
        actual, ours = native.step(row)
        expected, theirs = torch_runner.step(row)
        assert abs(reads_of(ours.rows[0]) - reads_of(theirs.rows[0])) < 0.02
        errors.append(correlation_error(actual[0], expected[0].numpy()[0]))
        shares.append(reads_of(ours.rows[0]))
    assert np.median(errors) < 0.01
    assert 0.1 < min(shares) < max(shares) - 0.1 < 0.89, "the thresholds are no test"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("image_format", FORMATS)
def test_the_extremes(image_format: str, isa: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, image_format), isa=isa)
    spec, scores = native.spec, some_scores(native.spec)
    everything, nothing = make_plan(spec, full_pool(spec)), make_plan(spec, (0,) * spec.num_layers)
    native.feed([PROMPT])
    row = make_row(ANSWER, start=len(PROMPT), sample=greedy())
    without_ffn = native.step(replace(row, plan=nothing))[0]
    cases = [((0.0, 1e30), 2 / 3), ((1e30, 0.0), 1 / 3), ((1e30, 1e30), 0.0)]
    for thresholds, reads in cases:
        logits, result = native.step(replace(row, plan=refine(everything, scores, *thresholds)))
        np.testing.assert_array_equal(logits, without_ffn)
        assert result.rows[0].ffn_reads == pytest.approx(reads)
    logits, result = native.step(replace(row, plan=refine(everything, scores, 0.0, 0.0)))
    assert result.rows[0].ffn_reads == 1.0
    # from their columns, gate and u are the dense model's but for the rounding of inputs
    assert correlation_error(logits[0], native.step(row)[0][0]) < TOLERANCE[image_format]


def mixed_rows(native: NativeHarness) -> tuple[StepRow, ...]:
    """Refined rows of one token and of several, static and dense ones, a chunk of a prompt that collects."""
    spec, m = native.spec, native.spec.intermediate_size
    refined = [drop_some(spec, full_pool(spec)), drop_some(spec, (m // 2, m, 3), down_threshold=0.03, seed=7)]
    for slot in range(5):
        native.feed([PROMPT[: slot + 2]], slot=slot)
    return (
        make_row(ANSWER[:1], slot=0, start=2, plan=refined[0], refine_scales=(1.5,), sample=greedy()),
        make_row(ANSWER[:5], slot=1, start=3, plan=refined[1], refine_scales=SCALES[:5], sample=greedy()),
        make_row(ANSWER[:1], slot=2, start=4, plan=make_plan(spec, (m // 3, 0, m), seed=4), sample=greedy()),
        make_row(ANSWER[:1], slot=3, start=5, plan=refined[0], sample=greedy()),
        make_row(ANSWER, slot=4, start=6, collect_statistics=True, sample=greedy()),
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("variant", [ODD_SIZES, MLP_BIAS], ids=by_name)
def test_a_batch_equals_its_rows(variant: Variant, image_format: str, isa: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(variant, tmp_path, image_format), isa=isa)
    rows = mixed_rows(native)
    alone = [native.step(row) for row in rows]
    for path in ("union_list", "all_neurons"):
        native.runner._open().force_ffn_path(path)
        for kept in ((0, 1, 2, 3, 4), (0, 3), (1, 2), (3, 4)):
            together, result = native.step(*(rows[index] for index in kept))
            for index, logits, row_result in zip(kept, together, result.rows, strict=True):
                np.testing.assert_array_equal(logits, alone[index][0][0], err_msg=f"{path} {kept} {index}")
                own = alone[index][1].rows[0]
                assert row_result.ffn_reads == own.ffn_reads
                assert row_result.cost.ffn_flops_planned == own.cost.ffn_flops_planned
                if own.statistics is not None and row_result.statistics is not None:
                    np.testing.assert_array_equal(row_result.statistics.sum_abs, own.statistics.sum_abs)


@pytest.mark.parametrize("image_format", FORMATS)
def test_chunks_equal_the_whole(image_format: str, tmp_path: Path) -> None:
    """Also when the answer is longer than what is multiplied together."""
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, image_format), block_size=16)
    plan, answer = drop_some(native.spec, full_pool(native.spec)), random_tokens(90, seed=4)
    scales = tuple(float(scale) for scale in np.random.default_rng(0).uniform(0.3, 3.0, len(answer)).astype(np.float32))
    native.feed([PROMPT])
    whole = make_row(answer, start=len(PROMPT), plan=plan, refine_scales=scales, sample=greedy())
    expected, (result,) = native.step(whole)[0], native.step(whole)[1].rows
    for calls in (singles(answer), split(answer, 5, 70, 1)):
        start, reads = 0, 0.0
        for tokens in calls:
            factors = scales[start : start + len(tokens)]
            row = make_row(tokens, start=len(PROMPT) + start, plan=plan, refine_scales=factors, sample=greedy())
            logits, step = native.step(row)
            reads += reads_of(step.rows[0]) * len(tokens)
            start += len(tokens)
        np.testing.assert_array_equal(logits, expected)
        assert reads / len(answer) == pytest.approx(reads_of(result))


@pytest.mark.parametrize("image_format", FORMATS)
def test_scoring_equals_decoding(image_format: str, tmp_path: Path) -> None:
    header = make_header(ODD_SIZES, tmp_path, image_format)
    native, plan = NativeHarness(header), drop_some(header.spec, full_pool(header.spec))
    with NativeScorer(header, max_tokens=len(PROMPT) + len(ANSWER), num_threads=2) as scorer:
        scorer.read_prompt(PROMPT)
        for scales in ((), SCALES):
            native.feed([PROMPT])
            forced = scorer.force(ANSWER, plan, scales)
            for i, token in enumerate(ANSWER):
                row = make_row([token], start=len(PROMPT) + i, plan=plan, sample=greedy())
                decoded, _ = native.step(replace(row, refine_scales=scales[i : i + 1]))
                np.testing.assert_array_equal(forced[i], decoded[0])


@pytest.mark.parametrize("image_format", FORMATS)
def test_texts_side_by_side_equal_one_after_the_other(image_format: str, tmp_path: Path) -> None:
    """Of different lengths, each token with a scale of its own."""
    header = make_header(ODD_SIZES, tmp_path, image_format)
    plans = [drop_some(header.spec, full_pool(header.spec), seed=seed) for seed in (0, 7)]
    texts = [
        ForcedText(PROMPT, ANSWER, plans[0]),
        ForcedText(random_tokens(30, seed=4), ANSWER[:3], plans[0]),
        ForcedText(PROMPT, ANSWER[:6], plans[1]),
    ]
    scales = [tuple(scale * factor for scale in SCALES) for factor in (1.0, 0.75, 1.5)]
    found: list[list[Floats]] = [[] for _ in texts]
    with NativeRowScorer(header, texts, num_threads=2) as rows:
        for index in range(len(ANSWER)):
            live = [number for number, text in enumerate(texts) if index < len(text.answer)]
            logits, reads = rows.step(index, live, [scales[number][index] for number in live])
            assert all(0 < share < 1 for share in reads)
            for number, row in zip(live, logits, strict=True):
                found[number].append(row)
    with NativeScorer(header, max_tokens=40, num_threads=2) as scorer:
        for text, factors, own in zip(texts, scales, found, strict=True):
            scorer.read_prompt(text.prompt)
            forced = scorer.force(text.answer, text.plan, factors[: len(text.answer)])
            np.testing.assert_array_equal(np.stack(own), forced)


def work_of(header: ImageHeader, plan: SparsityPlan) -> tuple[int, int]:
    """FLOPs and bytes of one token under a plan of `far_from_thresholds`."""
    spec, refinement = header.spec, plan.refinement
    assert refinement is not None
    weights = num_bytes = 0
    for layer, pool in enumerate(plan.neurons):
        inputs = np.flatnonzero(refinement.weights.inputs[layer])
        summed = pool[refinement.weights.down[layer][pool] > 0]
        weights += 2 * spec.intermediate_size * len(inputs) + spec.hidden_size * len(summed)
        for name, kept in (("inputs", inputs), ("down", summed)):
            num_bytes += header.tensors[f"layers.{layer}.{name}"].row_bytes * len(kept)
        for name, kept in (("input_scales", inputs), ("down_scales", summed)):
            scales = header.tensors.get(f"layers.{layer}.{name}")
            num_bytes += 0 if scales is None else scales.row_bytes * len(np.unique(kept // 32))
        units = header.tensors.get(f"layers.{layer}.input_units")
        num_bytes += 0 if units is None else units.row_bytes
    return 2 * weights, num_bytes


@pytest.mark.parametrize("image_format", FORMATS)
def test_one_token_is_counted_to_the_byte(image_format: str, tmp_path: Path) -> None:
    header = make_header(ODD_SIZES, tmp_path, image_format)
    native = NativeHarness(header)
    native.runner._open().force_ffn_path("union_list")
    for pool in (full_pool(header.spec), (50, 200, 1)):
        plan = far_from_thresholds(header.spec, pool)
        flops, num_bytes = work_of(header, plan)
        (result,) = native.step(make_row(ANSWER[:1], plan=plan, sample=greedy()))[1].rows
        cost = result.cost
        assert cost.ffn_flops_planned == cost.ffn_flops_computed == flops < cost.ffn_flops_dense
        assert cost.ffn_bytes_planned == cost.ffn_bytes_computed == num_bytes < cost.ffn_bytes_dense
        assert result.ffn_reads == pytest.approx(flops / cost.ffn_flops_dense)


def bytes_of(header: ImageHeader, *endings: str) -> int:
    return sum(tensor.num_bytes for name, tensor in header.tensors.items() if name.endswith(endings))


@pytest.mark.parametrize("image_format", FORMATS)
def test_mixed_steps_never_execute_less_than_planned(image_format: str, tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, image_format))
    rows = mixed_rows(native)
    columns, by_rows = (bytes_of(native.runner.header, *names) for names in (COLUMNS, (".gate_up",)))
    for kept in ((0, 1), (0, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4)):
        costs = [result.cost for result in native.step(*(rows[index] for index in kept))[1].rows]
        for cost in costs:
            assert cost.ffn_flops_planned <= cost.ffn_flops_computed <= cost.ffn_flops_dense
            assert cost.ffn_bytes_planned <= cost.ffn_bytes_computed
        total = sum(costs, StepCost())
        only_refined = not {2, 4} & set(kept)
        # columns are padded by their own length, which is odder here
        surplus = max(columns - by_rows, 0) if only_refined else columns
        assert total.ffn_bytes_computed <= total.ffn_bytes_dense + surplus
        assert only_refined or total.ffn_bytes_computed > total.ffn_bytes_planned


def test_plans_are_forgotten_and_share_their_arrays(tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, "int4"))
    plan = drop_some(native.spec, full_pool(native.spec))
    assert plan.refinement is not None
    first = native.step(make_row(ANSWER, plan=plan, sample=greedy()))[0].copy()
    native.runner.release("sequence-0")
    other = replace(plan, refinement=replace(plan.refinement, thresholds=np.full((2, 3), 1e30, np.float32)))
    assert (native.step(make_row(ANSWER, plan=other, sample=greedy()))[0] != first).any()
    np.testing.assert_array_equal(native.step(make_row(ANSWER, plan=plan, sample=greedy()))[0], first)


def test_what_cannot_be_refined_is_refused(tmp_path: Path) -> None:
    native = NativeHarness(make_header(ODD_SIZES, tmp_path, "int4"))
    plan, small = drop_some(native.spec, full_pool(native.spec)), np.ones((3, 7), np.float32)
    weights = ScoreWeights(small, small)
    with pytest.raises(EngineFailureError, match="2 refine_scales for 1 tokens"):
        native.step(make_row([1], plan=plan, refine_scales=(1.0, 1.0)))
    misfit = refine(make_plan(native.spec, (1, 1, 1)), weights, 0.0, 0.0)
    with pytest.raises(EngineFailureError, match=r"refinement has sizes \(3, 7, 7\), the model \(3, 200, 104\)"):
        native.step(make_row([1], plan=misfit))
    with pytest.raises(ValueError, match=r"must have the shape \(3, 104\)"):
        native.runner._open().add_plan(9, misfit.neurons, misfit.refinement)
