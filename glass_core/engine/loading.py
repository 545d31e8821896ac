"""Building an engine from its configuration: the runner by name, the artifact for its weights, the selector on top."""

import importlib
import logging
import pkgutil
from pathlib import Path
from typing import cast

from glass_core import runners
from glass_core.config import EngineConfig
from glass_core.engine.engine import Engine
from glass_core.engine.runner_choice import choose_runner
from glass_core.errors import ConfigurationError
from glass_core.runners.base import Runner, RunnerModule
from glass_core.sparsity.artifact import GlobalStatistics, check_fingerprint, read_artifact, shipped_artifact
from glass_core.sparsity.selection import PlanSelector

logger = logging.getLogger(__name__)


def runner_names() -> tuple[str, ...]:
    """Every runner there is: the folders of `glass_core/runners`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(runners.__path__) if module.ispkg))


def load_runner(config: EngineConfig) -> Runner:
    """Load the configured runner, or the one `auto` means here.

    Raises ConfigurationError for an unknown runner or one whose libraries are not installed, and what it raises.
    """
    config = choose_runner(config).config
    if config.runner not in runner_names():
        raise ConfigurationError(f"no runner {config.runner!r}; available: {', '.join(runner_names())}")
    try:
        module = importlib.import_module(f"{runners.__name__}.{config.runner}")
    except ImportError as error:
        raise ConfigurationError(
            f"runner {config.runner!r} cannot be imported ({error}); install its extra, "
            f"for example `pip install glass-serve[torch]`"
        ) from error
    return cast(RunnerModule, module).load(config)


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
    choice = choose_runner(config)
    for note in choice.notes:
        logger.warning("%s", note)
    runner = load_runner(choice.config)
    try:
        return assemble_engine(runner, choice.config, notes=choice.notes)
    except BaseException:
        runner.close()
        raise


def assemble_engine(runner: Runner, config: EngineConfig, *, notes: tuple[str, ...] = ()) -> Engine:
    """An engine on a loaded runner. `notes` join those of the engine in its info."""
    found = load_statistics(config, runner.fingerprint)
    selector = build_selector(runner, None if found is None else found[0])
    return Engine(runner, selector, config, artifact=None if found is None else found[1].name, notes=notes)


def build_selector(runner: Runner, statistics: GlobalStatistics | None) -> PlanSelector:
    """What selects for this runner, in its own way where it has one. Raises ArtifactMismatchError."""
    return PlanSelector(
        num_layers=runner.spec.num_layers,
        intermediate_size=runner.spec.intermediate_size,
        statistics=statistics,
        magnitudes=runner.neuron_magnitudes,
        runner_refines=runner.refines,
        choose=runner.choose_neurons,
    )
