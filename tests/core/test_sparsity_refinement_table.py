"""RefinementTable: interpolation, range, and its way through the artifact's file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from glass_core.errors import ArtifactError, ConfigurationError, InvalidRequestError
from glass_core.sparsity.artifact import GlobalStatistics, read_artifact, write_artifact
from glass_core.sparsity.budget import uniform_profile
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.stored_tensor import as_stored
from tests.core.sparsity_samples import NUM_LAYERS, SHAPE, make_statistics, property_test, random_scores

SPARSITIES = np.array([0.1, 0.3, 0.6], np.float32)
UP = np.array([[1, 2, 3], [3, 2, 1], [5, 5, 5]], np.float32)
DOWN = np.array([[0, 0, 0], [1, 1, 1], [4, 2, 1]], np.float32)
WEIGHTS = {"up_weights": random_scores(31), "down_weights": random_scores(32)}


def make_table(**changes: Any) -> RefinementTable:
    values = {"sparsities": SPARSITIES, "up_thresholds": UP, "down_thresholds": DOWN}
    return RefinementTable(**(values | changes))


@pytest.mark.parametrize(("index", "sparsity"), [(0, 0.1), (1, 0.3), (2, 0.6)])
def test_measured_points_come_back(index: int, sparsity: float) -> None:
    up, down = make_table().thresholds(sparsity)
    np.testing.assert_allclose(up, UP[index], rtol=1e-6)
    np.testing.assert_allclose(down, DOWN[index], rtol=1e-6, atol=1e-6)
    assert up.dtype == down.dtype == np.float32


def test_thresholds_begin_at_zero_and_are_linear_between_points() -> None:
    table = make_table()
    assert not table.thresholds(0.0)[0].any()
    np.testing.assert_allclose(table.thresholds(0.05)[0], [0.5, 1, 1.5], rtol=1e-6)
    np.testing.assert_allclose(table.thresholds(0.45)[1], [2.5, 1.5, 1], rtol=1e-6)


@property_test
@given(sparsity=st.floats(0, 0.6))
def test_every_threshold_is_what_numpy_interpolates(sparsity: float) -> None:
    up, down = make_table().thresholds(sparsity)
    points = np.concatenate(([0.0], SPARSITIES))
    for layer in range(3):
        assert up[layer] == pytest.approx(np.interp(sparsity, points, [0, *UP[:, layer]]), rel=1e-5, abs=1e-6)
        assert down[layer] == pytest.approx(np.interp(sparsity, points, [0, *DOWN[:, layer]]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.61, 0.95, -0.1, float("nan")])
def test_beyond_the_last_point_is_an_error_with_the_range(sparsity: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"glass_sparsity from 0 to 0\.6, got") as caught:
        make_table().thresholds(sparsity)
    assert caught.value.param == "glass_sparsity"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsities": SPARSITIES[:2]}, "needs"),
        ({"down_thresholds": DOWN[:, :2]}, "needs"),
        ({"up_thresholds": UP[0]}, "needs"),
        ({"up_thresholds": UP.astype(np.float64)}, "up_thresholds must be finite float32"),
        ({"down_thresholds": np.full((3, 3), np.inf, np.float32)}, "down_thresholds must be finite"),
        ({"up_thresholds": -UP}, "not negative"),
        ({"sparsities": SPARSITIES[::-1].copy()}, "must ascend"),
        ({"sparsities": np.array([0.0, 0.1, 0.2], np.float32)}, "must ascend"),
        ({"sparsities": np.array([0.1, 0.2, 1.0], np.float32)}, "must ascend"),
        ({"up_weights": WEIGHTS["up_weights"]}, r"or neither; got \[\(3, 40\), None\]"),
        ({"down_weights": WEIGHTS["down_weights"]}, r"or neither; got \[None, \(3, 40\)\]"),
        ({name: values[:2] for name, values in WEIGHTS.items()}, r"got \[\(2, 40\), \(2, 40\)\]"),
        ({name: values[0] for name, values in WEIGHTS.items()}, r"\(layers, neurons\)"),
        (WEIGHTS | {"down_weights": -WEIGHTS["down_weights"]}, "down_weights must be finite float32, not negative"),
    ],
)
def test_impossible_tables_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_table(**changes)


def refined_statistics(**changes: Any) -> GlobalStatistics:
    profiles = {"uniform": uniform_profile(NUM_LAYERS)}
    return make_statistics(profiles=profiles, refinement={"uniform": make_table(**changes)})


def test_an_artifact_keeps_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "artifact.safetensors"
    write_artifact(path, refined_statistics())
    table = read_artifact(path).refinement["uniform"]
    np.testing.assert_array_equal(table.sparsities, SPARSITIES)
    np.testing.assert_array_equal(table.up_thresholds, UP)
    np.testing.assert_array_equal(table.down_thresholds, DOWN)


def test_an_artifact_keeps_a_tables_own_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_artifact(first, refined_statistics(**WEIGHTS))
    table = read_artifact(first).refinement["uniform"]
    for name, values in WEIGHTS.items():
        found = getattr(table, name)
        np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-6 * float(values.max()))
        np.testing.assert_array_equal(found, as_stored(values))
        np.testing.assert_array_equal(found, as_stored(found))
    write_artifact(second, read_artifact(first))
    assert second.read_bytes() == first.read_bytes()


def test_an_artifact_without_tables_has_none(tmp_path: Path) -> None:
    path = tmp_path / "artifact.safetensors"
    write_artifact(path, make_statistics())
    assert read_artifact(path).refinement == {}


def test_tables_must_fit_profiles_and_layers() -> None:
    with pytest.raises(ArtifactError, match="refinement of profile 'uniform': there is no such profile"):
        make_statistics(refinement={"uniform": make_table()})
    with pytest.raises(ArtifactError, match="expected 3 layers, got 2"):
        refined_statistics(up_thresholds=UP[:, :2].copy(), down_thresholds=DOWN[:, :2].copy())
    with pytest.raises(ArtifactError, match=r"expected weights of shape \(3, 40\), got \(3, 39\)"):
        refined_statistics(**{name: values[:, 1:] for name, values in WEIGHTS.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refinement.uniform.down_thresholds": None}, r"missing tensors \['refinement.uniform.down_thresholds'\]"),
        ({"refinement.uniform.more": UP}, r"unknown tensors \['refinement.uniform.more'\]"),
        ({"refinement.uniform.sparsities": UP}, "expected 1 to 1024 sparsities"),
        ({"refinement.uniform.up_thresholds": UP[:2]}, r"up_thresholds: expected F32 of shape \(3, 3\)"),
        ({"refinement.uniform.up_thresholds": -UP}, "refinement of profile 'uniform': .* not negative"),
    ],
)
def test_hostile_tables_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refuse(tmp_path / "artifact.safetensors", refined_statistics(), changes, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refinement.uniform.down_weights": None}, r"missing tensors \['refinement.uniform.down_weights'\]"),
        ({"refinement.uniform.up_weights.scale": None}, r"missing tensors \['refinement.uniform.up_weights.scale'\]"),
        ({"refinement.uniform.up_weights": WEIGHTS["up_weights"]}, r"up_weights: expected F16 of shape \(3, 40\)"),
        ({"refinement.uniform.up_weights": np.full(SHAPE, np.inf, np.float16)}, "up_weights must be finite"),
        ({"refinement.uniform.down_weights.scale": np.full(3, -1, np.float32)}, "not negative"),
    ],
)
def test_hostile_weights_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refuse(tmp_path / "artifact.safetensors", refined_statistics(**WEIGHTS), changes, message)


def refuse(path: Path, statistics: GlobalStatistics, changes: dict[str, Any], message: str) -> None:
    write_artifact(path, statistics)
    with safe_open(str(path), framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(path)
