"""Building an engine: runner by name, artifact by fingerprint, and what happens when either is wrong."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from glass_core import runners
from glass_core.api import SparsityParams
from glass_core.config import EngineConfig
from glass_core.engine import client, loading
from glass_core.errors import ArtifactMismatchError, ConfigurationError
from glass_core.sparsity.artifact import ArtifactManifest, GlobalStatistics, write_artifact
from glass_core.sparsity.choice import Choice
from glass_core.sparsity.local_stats import LocalStatistics
from glass_core.sparsity.plan import SparsityPlan
from tests.core.engine_builders import engine_config, make_request
from tests.fakes_runner import FakeRunner


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunner]:
    """A FakeRunner found like any other runner: as a folder in the runners' package."""
    fake = FakeRunner()
    (tmp_path / "fake_runner").mkdir()
    (tmp_path / "fake_runner" / "__init__.py").write_text("")
    monkeypatch.setattr(runners, "__path__", [*runners.__path__, str(tmp_path)])
    module = ModuleType("glass_core.runners.fake_runner")
    vars(module)["load"] = lambda config: fake
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield fake


@pytest.fixture
def artifact(tmp_path: Path, runner: FakeRunner) -> Path:
    """An artifact measured on the FakeRunner's weights."""
    shape = (runner.spec.num_layers, runner.spec.intermediate_size)
    manifest = ArtifactManifest(
        model_name="fake",
        fingerprint=runner.fingerprint,
        num_layers=shape[0],
        intermediate_size=shape[1],
        formulas={},
        corpus={"source": "null"},
        versions={},
        command="glass calibrate fake",
    )
    scores = np.ones(shape, dtype=np.float32)
    path = tmp_path / "fake.safetensors"
    write_artifact(path, GlobalStatistics(manifest, activation_l1=scores, activation_l2=scores))
    return path


def fake_config(runner: FakeRunner) -> EngineConfig:
    return replace(engine_config(runner), runner="fake_runner")


def test_runners_are_the_folders_of_their_package() -> None:
    assert "torch_runner" in loading.runner_names()
    assert "base" not in loading.runner_names()


def test_an_unknown_runner_is_refused_by_name(runner: FakeRunner) -> None:
    with pytest.raises(ConfigurationError, match=r"no runner 'os'; available: .*torch_runner"):
        loading.load_runner(replace(fake_config(runner), runner="os"))


def test_a_runner_without_its_libraries_says_what_to_install(
    runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "glass_core.runners.fake_runner", None)
    with pytest.raises(ConfigurationError, match="install its extra"):
        loading.load_runner(fake_config(runner))


async def test_start_engine_serves_without_an_artifact_and_says_so(runner: FakeRunner) -> None:
    engine = client.start_engine(fake_config(runner))
    try:
        assert engine.info.artifact is None
        assert "a_glass" in engine.info.unavailable_methods
        assert len([event async for event in await engine.submit(make_request())]) == 4
    finally:
        await engine.close()


async def test_the_configured_artifact_is_loaded_and_named(runner: FakeRunner, artifact: Path) -> None:
    engine = client.start_engine(replace(fake_config(runner), artifact_path=artifact))
    await engine.close()
    assert engine.info.artifact == artifact.name
    assert "a_glass" in engine.info.methods
    missing = [note.split()[0] for note in engine.info.notes]
    assert missing == ["glass_refine", "glass_sparsity"]  # this artifact has neither thresholds nor expected KL


def test_an_artifact_of_another_model_is_refused_and_the_runner_closed(runner: FakeRunner, artifact: Path) -> None:
    runner.fingerprint = "another"
    with pytest.raises(ArtifactMismatchError, match="another"):
        client.start_engine(replace(fake_config(runner), artifact_path=artifact))
    assert runner.closed


def test_the_selector_chooses_as_the_runner_does(runner: FakeRunner) -> None:
    kept = tuple(np.array([layer, 5], np.int32) for layer in range(runner.spec.num_layers))
    runner.choose_neurons = lambda *_: Choice(kept, 0.25)
    plan = select_half(runner)
    assert [layer.tolist() for layer in plan.neurons] == [[0, 5], [1, 5]]
    assert plan.global_overlap == 0.25


def test_a_runner_without_a_choice_of_its_own_gets_the_reference(runner: FakeRunner) -> None:
    assert [layer.tolist() for layer in select_half(runner).neurons] == [[0, 1, 2, 3]] * 2  # ties to the lower index


def select_half(runner: FakeRunner) -> SparsityPlan:
    """Half of each layer, for a prompt whose neurons all did the same."""
    ones = np.ones((runner.spec.num_layers, runner.spec.intermediate_size), np.float32)
    selector = loading.build_selector(runner, None)
    plan = selector.select(SparsityParams(sparsity=0.5, method="griffin"), LocalStatistics(ones, ones, 1))
    assert plan is not None
    return plan
