"""Quality of all points on the same answers: KL(float32 || point), by the long-form protocol."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from glass_core.api import SparsityParams
from glass_core.offline.bench.llama_cpp import LlamaBench
from glass_core.offline.bench.quality import Score, peer_log_probs
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.condition_scores import score_conditions
from glass_core.offline.evaluate.evaluation import LongformRun
from glass_core.offline.evaluate.longform import DenseAnswer, run_dense
from glass_core.offline.evaluate.scores import AnswerScore
from glass_core.offline.evaluate.subjects import Subject
from glass_core.offline.frontier.points import OwnPoint, RivalPoint
from glass_core.sparsity.selection import PlanSelector


@dataclass(frozen=True, slots=True)
class Scored:
    """Points without speeds yet, and why none of them is refined (None when some are)."""

    own: list[OwnPoint]
    rivals: list[RivalPoint]
    refinement_problem: str | None


def score_points(
    longform: LongformRun, answers: Sequence[Answer], peers: Sequence[LlamaBench], llama_server: Path | None
) -> Scored:
    """Every image of the run under its sweep's conditions, refined too where that is possible, and every peer."""
    references = [run_dense(longform.model, answer) for answer in longform.in_progress(answers)]
    with ExitStack() as stack:
        subjects = longform.native_subjects(stack, answers)
        own: list[OwnPoint] = []
        with longform.progress.task("scoring images", len(subjects)) as advance:
            for subject in subjects:
                own += _score_own(longform, subject, references)
                advance()
        problem = subjects[0].selector.refinement_problem if subjects else None
    rivals = []
    with longform.progress.task("scoring rivals", len(peers)) as advance:
        for peer in peers:
            assert llama_server is not None
            theirs = peer_log_probs(llama_server, peer, answers, longform.model.spec.vocab_size)
            score = Score.of([one.log_probs for one in references], theirs, seed=longform.seed)
            rivals.append(RivalPoint(peer, score))
            advance()
    return Scored(own, rivals, problem)


def _conditions(longform: LongformRun, selector: PlanSelector) -> list[SparsityParams]:
    """The sweep, and its profiles and sparsities refined as far as thresholds are known."""
    refined = [
        replace(
            longform.sweep,
            profiles=(profile,),
            sparsities=tuple(sparsity for sparsity in longform.sweep.sparsities if sparsity <= highest),
            refine=(True,),
        )
        for profile, highest in selector.refinable.items()
        if profile in longform.sweep.profiles
    ]
    return [params for sweep in (longform.sweep, *refined) for params in sweep.conditions(selector)]


def _score_own(longform: LongformRun, subject: Subject, references: Sequence[DenseAnswer]) -> list[OwnPoint]:
    """One image under all of its conditions."""
    (found,) = score_conditions([subject], _conditions(longform, subject.selector), references)
    return [
        OwnPoint(
            subject.dtype,
            params,
            Score.over([one.from_dense for one in scores], seed=longform.seed),
            _mean_reads(scores),
        )
        for params, scores in found.items()
    ]


def _mean_reads(scores: Sequence[AnswerScore]) -> float:
    return sum(one.ffn_reads * one.num_tokens for one in scores) / sum(one.num_tokens for one in scores)
