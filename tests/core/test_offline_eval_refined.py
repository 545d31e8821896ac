"""Refined answers side by side: the scores of each decoded alone as served, on both runners; on a tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glass_core.api import SparsityParams
from glass_core.engine.refine_control import ReadsController
from glass_core.offline.cli import main
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.condition_scores import chunks, score_conditions
from glass_core.offline.evaluate.longform import DenseAnswer, predict_tokens, run_dense
from glass_core.offline.evaluate.scores import AnswerScore, score_predictions
from glass_core.offline.evaluate.subjects import NativeSubject, Subject, TorchSubject
from glass_core.runners.native.extension import why_missing
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.runners.torch_runner.refined import RefinedFfn
from glass_core.runners.torch_runner.views import PackedViews
from glass_core.sparsity.artifact import GlobalStatistics, read_artifact
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import STAGES, ScoreWeights
from tests.parity.variants import random_tokens

STATIC = SparsityParams(0.5, method="griffin")
REFINED = [SparsityParams(value, profile="sensitivity", refine=True) for value in (0.2, 0.5)]
# enough that two conditions on them are more rows than are decoded together
ANSWERS = [Answer(random_tokens(3 + i % 5, seed=i), random_tokens(6 + i % 7, seed=100 + i)) for i in range(50)]


@pytest.fixture(scope="module")
def statistics(artifact: Path) -> GlobalStatistics:
    return read_artifact(artifact)


def refined_plan(subject: Subject, params: SparsityParams) -> SparsityPlan:
    plan = subject.selector.select(params, None)
    assert plan is not None
    return plan


@torch.no_grad()
def decode_alone(model: TorchModel, dense: DenseAnswer, plan: SparsityPlan) -> AnswerScore:
    """One token at a time with the torch runner's own FFN of a refined row."""
    refinement, cache, views = plan.refinement, dense.prompt_cache.fork(), PackedViews(model, plan)
    assert refinement is not None
    controller, predicted = ReadsController(refinement.reads), []
    for index in range(len(dense.continuation)):
        ffn = RefinedFfn(model.spec, views, refinement, 1, controller.scales(index, index + 1))
        predicted.append(predict_tokens(model, dense.continuation[index : index + 1], cache, ffn.ffn))
        controller.observe(index, index + 1, ffn.reads)
    assert controller.mean_reads is not None
    return score_predictions(torch.cat(predicted), dense.targets, controller.mean_reads, dense=dense.log_probs)


def assert_same(found: AnswerScore, expected: AnswerScore, *, rel: float) -> None:
    assert found.num_tokens == expected.num_tokens
    assert found.nll == pytest.approx(expected.nll, rel=rel)
    assert found.ffn_reads == pytest.approx(expected.ffn_reads, rel=rel)
    np.testing.assert_allclose(found.from_dense.token_kl, expected.from_dense.token_kl, rtol=100 * rel, atol=1e-6)
    assert (found.from_dense.agrees == expected.from_dense.agrees).all()


def difference(found: AnswerScore, expected: AnswerScore) -> float:
    """The largest relative one, of likelihood, reads and KL."""
    assert found.num_tokens == expected.num_tokens
    values, others = ((item.nll, item.ffn_reads, item.from_dense.kl) for item in (found, expected))
    return float(np.abs(np.divide(values, others) - 1.0).max())


def test_side_by_side_is_as_alone(model: TorchModel, statistics: GlobalStatistics) -> None:
    subject, dense = TorchSubject(model, statistics), [run_dense(model, answer) for answer in ANSWERS]
    (found,) = score_conditions([subject], [*REFINED, STATIC], dense)
    apart = []
    for params in REFINED:
        for one, score in zip(dense[::4], found[params][::4], strict=True):
            apart.append(difference(score, decode_alone(model, one, refined_plan(subject, params))))
            assert score.from_dense.kl > 0
            assert score.from_twin is None
    # where rounding moves a score across its threshold, an answer goes on a little differently
    assert np.quantile(apart, 0.9) < 1e-4
    assert max(apart) < 4e-2
    # static conditions beside them are what they are alone
    for one, score in zip(dense, found[STATIC], strict=True):
        subject.begin(one)
        log_probs, reads = subject.predict(STATIC)
        assert_same(score, score_predictions(log_probs, one.targets, reads, dense=one.log_probs), rel=1e-9)


def test_profiles_side_by_side_are_scored_by_their_own_weights(model: TorchModel, statistics: GlobalStatistics) -> None:
    measured, profile = statistics.refinement["sensitivity"], statistics.profiles["sensitivity"]
    mirrored = ScoreWeights(*(np.flip(getattr(measured.weights, stage), axis=1).copy() for stage in STAGES))
    both = replace(
        statistics,
        profiles={"sensitivity": profile, "tuned": replace(profile, name="tuned")},
        refinement={"sensitivity": measured, "tuned": replace(measured, weights=mirrored)},
        expected_kl={},
    )
    wanted = [REFINED[1], replace(REFINED[1], profile="tuned")]
    subject, dense = TorchSubject(model, both), [run_dense(model, answer) for answer in ANSWERS[:8]]
    (together,) = score_conditions([subject], wanted, dense)
    for params in wanted:
        (alone,) = score_conditions([subject], [params], dense)
        apart = [difference(*pair) for pair in zip(together[params], alone[params], strict=True)]
        assert np.median(apart) < 1e-4
        assert max(apart) < 2e-2
    assert max(difference(*pair) for pair in zip(*together.values(), strict=True)) > 5e-2


@pytest.mark.skipif(why_missing() is not None, reason="the native runner is not built")
def test_the_native_runner_decodes_rows_as_one_by_one(
    model_dir: Path, model: TorchModel, statistics: GlobalStatistics
) -> None:
    from glass_core.runners.native.checkpoint_image import open_or_make_image
    from glass_core.runners.native.scoring import NativeScorer

    assert main(["quantize", str(model_dir), "--format", "bf16"]) == 0
    dense = [run_dense(model, answer) for answer in ANSWERS[:6]]
    with NativeScorer(open_or_make_image(model_dir, "bf16"), max_tokens=32, num_threads=1) as scorer:
        subjects: list[Subject] = [TorchSubject(model, statistics), NativeSubject.on(scorer, statistics)]
        reference, together = score_conditions(subjects, REFINED, dense)
        alone = [score_conditions(subjects[1:], REFINED, [one])[0] for one in dense]
    for params in REFINED:
        for number, (one, beside) in enumerate(zip(together[params], reference[params], strict=True)):
            own = alone[number][params][0]
            assert (one.nll, one.ffn_reads, one.from_dense.kl) == (own.nll, own.ffn_reads, own.from_dense.kl)
            assert one.ffn_reads == pytest.approx(beside.ffn_reads, abs=0.03)
            # what bf16 adds is little beside what the condition costs
            assert one.from_twin is not None
            assert 0 < one.from_twin.kl < 0.5 * beside.from_dense.kl


def test_answers_are_held_together_only_for_refined_conditions() -> None:
    long = [Answer((1,), tuple(range(4001))), *ANSWERS[:2], Answer((1,), tuple(range(6001)))]
    assert [len(chunk) for chunk in chunks(long, [STATIC], 49152)] == [1, 1, 1, 1]
    assert [len(chunk) for chunk in chunks(long, [STATIC, *REFINED], 49152)] == [3, 1]
    assert [len(chunk) for chunk in chunks(long, REFINED, 262144)] == [1, 2, 1]
    assert [answer for chunk in chunks(long, REFINED, 49152) for answer in chunk] == long
    assert list(chunks([], REFINED, 49152)) == []
