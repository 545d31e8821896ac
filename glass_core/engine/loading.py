"""Building an engine from its configuration: the runner by name, the artifact for its weights, the selector on top."""

from pathlib import Path

from glass_core.config import EngineConfig
from glass_core.engine.engine import Engine
from glass_core.runners import load_runner
from glass_core.runners.base import Runner
from glass_core.sparsity.artifact import GlobalStatistics, check_fingerprint, read_artifact, shipped_artifact
from glass_core.sparsity.selection import PlanSelector


def load_statistics(config: EngineConfig, fingerprint: str) -> tuple[GlobalStatistics, Path] | None:
    """The configured artifact, else the one shipped for these weights, else None.

    Raises ArtifactError for an unreadable file, ArtifactMismatchError for one made for other weights.
    """
    path = config.artifact_path if config.artifact_path is not None else shipped_artifact(fingerprint)
    if path is None:
        return None
    statistics = read_artifact(path)
    check_fingerprint(statistics, fingerprint)
    return statistics, path


def load_engine(config: EngineConfig) -> Engine:
    """Load everything the configuration names. Raises ConfigurationError, ModelError, ArtifactError."""
    runner = load_runner(config)
    try:
        return assemble_engine(runner, config)
    except BaseException:
        runner.close()
        raise


def assemble_engine(runner: Runner, config: EngineConfig) -> Engine:
    """An engine on a loaded runner."""
    found = load_statistics(config, runner.fingerprint)
    selector = PlanSelector(
        num_layers=runner.spec.num_layers,
        intermediate_size=runner.spec.intermediate_size,
        statistics=None if found is None else found[0],
        magnitudes=runner.neuron_magnitudes,
    )
    return Engine(runner, selector, config, artifact=None if found is None else found[1].name)
