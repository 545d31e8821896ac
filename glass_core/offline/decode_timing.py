"""Decode steps against the clock, as a server runs them: refined thresholds are adjusted token by token."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from glass_core.engine.refine_control import ReadsController
from glass_core.offline.generation import OfflineSequence
from glass_core.runners.base import Runner, StepBatch, StepResult, StepRow


@dataclass(frozen=True, slots=True)
class Decoded:
    """What some decode steps of a batch took: the bytes of FFN weights that a step read on average, and those that its
    rows' plans take, each its share; `ffn_reads` is the mean share of the FFN that the tokens of refined sequences
    needed, None without any."""

    seconds: float
    executed_ffn_bytes: float
    planned_ffn_bytes: float
    ffn_reads: float | None


def time_decode(runner: Runner, sequences: Sequence[OfflineSequence], num_tokens: int) -> Decoded:
    """Run `num_tokens` decode steps from the end of the prompts, under the sequences' plans."""
    for sequence in sequences:
        del sequence.generated[1:]
    controllers = [_controller(sequence) for sequence in sequences]
    steps = []
    start = time.perf_counter()
    for index in range(num_tokens):
        steps.append(_decode_step(runner, sequences, controllers, index))
    seconds = time.perf_counter() - start
    reads = [controller.mean_reads for controller in controllers if controller is not None]
    known = [value for value in reads if value is not None]
    costs = [row.cost for step in steps for row in step.rows]
    executed, planned = (
        sum(getattr(cost, name) for cost in costs) / num_tokens for name in ("ffn_bytes_computed", "ffn_bytes_planned")
    )
    return Decoded(seconds, executed, planned, fmean(known) if known else None)


def _controller(sequence: OfflineSequence) -> ReadsController | None:
    refinement = None if sequence.plan is None else sequence.plan.refinement
    return None if refinement is None else ReadsController(refinement.reads)


def _decode_step(
    runner: Runner, sequences: Sequence[OfflineSequence], controllers: Sequence[ReadsController | None], index: int
) -> StepResult:
    """The step that runs token `index` of every answer, counted from 0."""
    pairs = zip(sequences, controllers, strict=True)
    step = runner.execute(StepBatch(tuple(_row(sequence, controller, index) for sequence, controller in pairs)))
    for sequence, controller, result in zip(sequences, controllers, step.rows, strict=True):
        assert result.token_id is not None
        sequence.generated.append(result.token_id)
        if controller is not None:
            assert result.ffn_reads is not None
            controller.observe(index, index + 1, result.ffn_reads)
    return step


def _row(sequence: OfflineSequence, controller: ReadsController | None, index: int) -> StepRow:
    row = sequence.decode_row()
    return row if controller is None else replace(row, refine_scales=controller.scales(index, index + 1))
