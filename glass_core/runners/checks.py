"""What a step must satisfy before any runner touches it: a bad row is an EngineFailureError, never a crash."""

import math
from collections.abc import Callable
from itertools import pairwise

from glass_core.errors import EngineFailureError
from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepBatch, StepRow
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.refinement import Refinement

Check = Callable[[StepRow], str | None]


def check_rows(batch: StepBatch, *checks: Check) -> None:
    """Run every check on every row.

    Raises EngineFailureError naming the sequence, what came and what was expected.
    """
    ids = [row.sequence_id for row in batch.rows]
    if len(set(ids)) != len(ids):
        raise EngineFailureError(f"a step takes one row per sequence, got {ids}")
    for row in batch.rows:
        for check in checks:
            problem = check(row)
            if problem is not None:
                raise EngineFailureError(f"sequence {row.sequence_id!r}: {problem}")


def token_problem(row: StepRow, spec: ModelSpec) -> str | None:
    """What is wrong with the row's tokens and its start."""
    if not row.token_ids:
        return "a row needs at least one token, got none"
    if row.start < 0:
        return f"start must not be negative, got {row.start}"
    lowest, highest = min(row.token_ids), max(row.token_ids)
    if lowest >= 0 and highest < spec.vocab_size:
        return None
    worst = next(token for token in row.token_ids if not 0 <= token < spec.vocab_size)
    return f"token id {worst} lies outside the vocabulary [0, {spec.vocab_size})"


def block_problem(row: StepRow, *, num_blocks: int, block_size: int) -> str | None:
    """What is wrong with the row's block table, in a cache of these sizes."""
    num_positions = row.start + len(row.token_ids)
    if len(row.block_table) * block_size < num_positions:
        return f"{len(row.block_table)} blocks of {block_size} do not cover {num_positions} positions"
    if min(row.block_table) >= 0 and max(row.block_table) < num_blocks:
        return None
    worst = next(block for block in row.block_table if not 0 <= block < num_blocks)
    return f"block {worst} lies outside the pool [0, {num_blocks})"


def plan_problem(plan: SparsityPlan | None, spec: ModelSpec) -> str | None:
    """What is wrong with a plan for this model."""
    return None if plan is None else plan_shape_problem(plan, spec) or _neuron_problem(plan)


def plan_shape_problem(plan: SparsityPlan, spec: ModelSpec) -> str | None:
    """What is wrong with the sizes of a plan for this model, whatever its neurons are."""
    if len(plan.neurons) != spec.num_layers:
        return f"the plan has {len(plan.neurons)} layers, the model {spec.num_layers}"
    if plan.intermediate_size != spec.intermediate_size:
        return f"the plan is for {plan.intermediate_size} neurons a layer, the model has {spec.intermediate_size}"
    return _refinement_problem(plan.refinement, spec)


def _neuron_problem(plan: SparsityPlan) -> str | None:
    for layer, neurons in enumerate(plan.neurons):
        # ascending, so the ends bound the rest
        if len(neurons) and not 0 <= neurons[0] <= neurons[-1] < plan.intermediate_size:
            return f"layer {layer} of the plan has neurons outside [0, {plan.intermediate_size})"
    return None


def _refinement_problem(refinement: Refinement | None, spec: ModelSpec) -> str | None:
    if refinement is None:
        return None
    found = (*refinement.weights.down.shape, refinement.weights.inputs.shape[1])
    expected = (spec.num_layers, spec.intermediate_size, spec.hidden_size)
    return None if found == expected else f"the plan's refinement has sizes {found}, the model {expected}"


def scales_problem(row: StepRow) -> str | None:
    """What is wrong with the factors on a refined row's thresholds."""
    scales = row.refine_scales
    if not scales:
        return None
    if not row.is_refined:
        return "refine_scales without a refined plan"
    if len(scales) != len(row.token_ids):
        return f"{len(scales)} refine_scales for {len(row.token_ids)} tokens"
    if all(0.0 < scale < math.inf for scale in scales):
        return None
    return f"refine_scales must be positive and finite, got {scales}"


def statistics_problem(row: StepRow, spec: ModelSpec) -> str | None:
    """What is wrong with the statistics the row asks for."""
    if not row.collect_statistics:
        unused = row.prior_statistics is not None or row.snapshot_ends
        return "prior statistics or snapshots without collecting statistics" if unused else None
    if row.plan is not None:
        return "statistics are collected from dense rows only, this one has a plan"
    return _prior_problem(row, spec) or _snapshot_problem(row)


def _prior_problem(row: StepRow, spec: ModelSpec) -> str | None:
    prior = row.prior_statistics
    if prior is None:
        return None
    shape = (spec.num_layers, spec.intermediate_size)
    if prior.sum_abs.shape != shape or prior.sum_squares.shape != shape:
        return f"the prior statistics have shape {prior.sum_abs.shape}, the model {shape}"
    if prior.num_tokens != row.start:
        return f"the prior statistics are those of {prior.num_tokens} tokens, the row starts at {row.start}"
    return None


def _snapshot_problem(row: StepRow) -> str | None:
    positions = (row.start, *row.snapshot_ends)
    ascending = all(earlier < later for earlier, later in pairwise(positions))
    end = row.start + len(row.token_ids)
    if ascending and positions[-1] <= end:
        return None
    return f"snapshot_ends must ascend within ({row.start}, {end}], got {row.snapshot_ends}"
