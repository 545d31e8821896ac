"""The checks every runner makes, against the torch runner's pool."""

from glass_core.models.spec import ModelSpec
from glass_core.runners.base import StepBatch
from glass_core.runners.checks import (
    block_problem,
    check_rows,
    plan_problem,
    scales_problem,
    statistics_problem,
    token_problem,
)
from glass_core.runners.torch_runner.kv_pool import KVPool


def check_batch(batch: StepBatch, spec: ModelSpec, pool: KVPool) -> None:
    """Raises EngineFailureError naming the sequence, what came and what was expected."""
    check_rows(
        batch,
        lambda row: token_problem(row, spec),
        lambda row: block_problem(row, num_blocks=pool.num_blocks, block_size=pool.block_size),
        lambda row: plan_problem(row.plan, spec),
        lambda row: statistics_problem(row, spec),
        scales_problem,
    )
