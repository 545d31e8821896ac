"""Scores of dense answers under conditions: static ones answer by answer, refined ones side by side."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from glass_core.api import SparsityParams
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.evaluate.longform import DenseAnswer
from glass_core.offline.evaluate.refined import MAX_ROWS
from glass_core.offline.evaluate.refined_scores import score_refined
from glass_core.offline.evaluate.scores import AnswerScore, score_predictions
from glass_core.offline.evaluate.subjects import Subject

# dense predictions of all answers that are held at once, unless one's take more: 6144 tokens of a vocabulary of 49 152
_MAX_BYTES = 1152 << 20

# of one subject: a score per answer, in order
Scores = dict[SparsityParams, list[AnswerScore]]


def chunks(answers: Iterable[Answer], wanted: Sequence[SparsityParams], vocab_size: int) -> Iterator[list[Answer]]:
    """The answers in order: as many together as memory allows where refined conditions decode them side by side."""
    most = _MAX_BYTES // (4 * vocab_size) if any(params.refine for params in wanted) else 0
    chunk: list[Answer] = []
    for answer in answers:
        if chunk and sum(len(one.token_ids) - 1 for one in [*chunk, answer]) > most:
            yield chunk
            chunk = []
        chunk.append(answer)
    if chunk:
        yield chunk


def score_conditions(
    subjects: Sequence[Subject], wanted: Sequence[SparsityParams], dense: Sequence[DenseAnswer]
) -> list[Scores]:
    """Of every subject, under every condition. Later subjects are also compared with the first under the same one."""
    found: list[Scores] = [{params: [] for params in wanted} for _ in subjects]
    for one in dense:
        _add_static(subjects, [params for params in wanted if not params.refine], one, found)
    _add_refined(subjects, [params for params in wanted if params.refine], dense, found)
    return found


def _add_static(
    subjects: Sequence[Subject], wanted: Sequence[SparsityParams], dense: DenseAnswer, found: Sequence[Scores]
) -> None:
    for subject in subjects if wanted else ():
        subject.begin(dense)
    for params in wanted:
        twin: Tensor | None = None
        for subject, scores in zip(subjects, found, strict=True):
            log_probs, reads = subject.predict(params)
            score = score_predictions(log_probs, dense.targets, reads, dense=dense.log_probs, twin=twin)
            scores[params].append(score)
            twin = log_probs if twin is None else twin


def _add_refined(
    subjects: Sequence[Subject], wanted: Sequence[SparsityParams], dense: Sequence[DenseAnswer], found: Sequence[Scores]
) -> None:
    pairs = [(params, one) for params in wanted for one in dense]
    for start in range(0, len(pairs), MAX_ROWS):
        together = pairs[start : start + MAX_ROWS]
        decoders = [subject.decode_refined(together) for subject in subjects]
        for scores, rows in zip(found, score_refined(decoders, [one for _, one in together]), strict=True):
            for (params, _), row in zip(together, rows, strict=True):
                scores[params].append(row)
