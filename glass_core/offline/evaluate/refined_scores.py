"""Scores of refined rows, put together from what each step predicts, so that predictions need not be kept."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from glass_core.offline.evaluate.longform import DenseAnswer
from glass_core.offline.evaluate.refined import RefinedStep
from glass_core.offline.evaluate.scores import AnswerScore, Divergence


def score_refined(decoders: Sequence[Iterator[RefinedStep]], dense: Sequence[DenseAnswer]) -> list[list[AnswerScore]]:
    """Of every decoder, on every row; `dense` are the rows' answers. The decoders run in step, and later ones are also
    compared with the first."""
    found = [_RowScores(dense, has_twin=number > 0) for number in range(len(decoders))]
    for steps in zip(*decoders, strict=True):
        for scores, step in zip(found, steps, strict=True):
            scores.add(step, steps[0].log_probs)
    return [scores.result() for scores in found]


class _RowScores:
    """Scores per token of one decoder's rows, (rows, tokens of the longest)."""

    def __init__(self, dense: Sequence[DenseAnswer], *, has_twin: bool) -> None:
        self._dense = dense
        self._has_twin = has_twin
        shape = (len(dense), max(len(one.targets) for one in dense))
        self._nll, self._reads = np.zeros(shape), np.zeros(shape)
        self._from_dense = Divergence(np.zeros(shape), np.zeros(shape, np.bool_))
        self._from_twin = Divergence(np.zeros(shape), np.zeros(shape, np.bool_))

    def add(self, step: RefinedStep, twin: Tensor) -> None:
        """`twin` (rows, vocab): the first decoder's log-probabilities in this step."""
        rows, index = list(step.rows), step.index
        answers = [self._dense[row] for row in rows]
        targets = torch.stack([one.targets[index] for one in answers])
        self._nll[rows, index] = -step.log_probs.gather(1, targets[:, None])[:, 0].double().cpu().numpy()
        self._reads[rows, index] = step.reads
        reference = torch.stack([one.log_probs[index] for one in answers])
        _put(self._from_dense, rows, index, Divergence.of(reference, step.log_probs))
        if self._has_twin:
            _put(self._from_twin, rows, index, Divergence.of(twin, step.log_probs))

    def result(self) -> list[AnswerScore]:
        return [self._score(row, len(one.targets)) for row, one in enumerate(self._dense)]

    def _score(self, row: int, num_tokens: int) -> AnswerScore:
        return AnswerScore(
            num_tokens=num_tokens,
            nll=float(self._nll[row, :num_tokens].sum()),
            ffn_reads=float(self._reads[row, :num_tokens].mean()),
            from_dense=_take(self._from_dense, row, num_tokens),
            from_twin=_take(self._from_twin, row, num_tokens) if self._has_twin else None,
        )


def _put(table: Divergence, rows: list[int], index: int, found: Divergence) -> None:
    table.token_kl[rows, index], table.agrees[rows, index] = found.token_kl, found.agrees


def _take(table: Divergence, row: int, num_tokens: int) -> Divergence:
    return Divergence(table.token_kl[row, :num_tokens], table.agrees[row, :num_tokens])
