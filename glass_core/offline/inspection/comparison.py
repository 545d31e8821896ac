"""The two rankings an inspection sets against each other, and under which name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glass_core.config import EngineConfig
from glass_core.offline.generation import blocks_for
from glass_core.offline.inspection.spectra import overlap
from glass_core.runners import load_runner
from glass_core.runners.base import Runner, StepBatch, StepRow
from glass_core.sparsity.artifact import GlobalStatistics, check_fingerprint
from glass_core.sparsity.local_stats import LocalStatistics

DENSITY = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """Per layer, the share of neurons that both rankings keep at density 0.5."""

    label: str
    overlaps: Sequence[float]


def compare_statistics(statistics: GlobalStatistics) -> Comparison | None:
    """Activation against impact; None when impact was not measured."""
    if statistics.impact_abs is None:
        return None
    return Comparison("activation ∩ impact", overlap(statistics.activation_l1, statistics.impact_abs, DENSITY))


def compare_prompt(statistics: GlobalStatistics, local: LocalStatistics) -> Comparison:
    """A prompt's own statistic against the artifact's."""
    return Comparison("prompt ∩ global", overlap(local.l1(), statistics.activation_l1, DENSITY))


def prompt_statistics(
    model_dir: Path, runner_name: str, token_ids: Sequence[int], statistics: GlobalStatistics
) -> LocalStatistics:
    """The local statistics of a prompt, from a dense prefill. Raises ArtifactMismatchError for another model."""
    runner = load_runner(EngineConfig(model_path=model_dir, model_name=model_dir.name, runner=runner_name))
    check_fingerprint(statistics, runner.fingerprint)
    return _prefill_statistics(runner, token_ids)


def _prefill_statistics(runner: Runner, token_ids: Sequence[int]) -> LocalStatistics:
    blocks = tuple(range(blocks_for(len(token_ids))))
    row = StepRow("inspect", tuple(token_ids), 0, blocks, collect_statistics=True)
    (result,) = runner.execute(StepBatch((row,))).rows
    assert result.statistics is not None
    return result.statistics
