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
from glass_core.sparsity.refinement import STAGES
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.sparsity.stored_tensor import as_stored
from tests.core.sparsity_samples import NUM_LAYERS, SHAPE, make_statistics, property_test, random_weights

SPARSITIES = np.array([0.1, 0.3, 0.6], np.float32)
THRESHOLDS = np.array(
    [
        [[0, 1, 0], [1, 2, 3]],
        [[1, 1, 2], [3, 2, 1]],
        [[3, 1, 4], [5, 5, 5]],
    ],
    np.float32,
)
WEIGHTS = random_weights(31)


def make_table(**changes: Any) -> RefinementTable:
    values: dict[str, Any] = {"sparsities": SPARSITIES, "thresholds": THRESHOLDS, "weights": WEIGHTS}
    return RefinementTable(**(values | changes))


@pytest.mark.parametrize(("index", "sparsity"), [(0, 0.1), (1, 0.3), (2, 0.6)])
def test_measured_points_come_back(index: int, sparsity: float) -> None:
    found = make_table().thresholds_at(sparsity)
    np.testing.assert_allclose(found, THRESHOLDS[index], rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32


def test_thresholds_begin_at_zero_and_are_linear_between_points() -> None:
    table = make_table()
    assert not table.thresholds_at(0.0).any()
    np.testing.assert_allclose(table.thresholds_at(0.05), THRESHOLDS[0] / 2, rtol=1e-6)
    np.testing.assert_allclose(table.thresholds_at(0.45), (THRESHOLDS[1] + THRESHOLDS[2]) / 2, rtol=1e-6)


@property_test
@given(sparsity=st.floats(0, 0.6))
def test_every_threshold_is_what_numpy_interpolates(sparsity: float) -> None:
    found = make_table().thresholds_at(sparsity)
    points = np.concatenate(([0.0], SPARSITIES))
    for stage in range(len(STAGES)):
        for layer in range(NUM_LAYERS):
            expected = np.interp(sparsity, points, [0, *THRESHOLDS[:, stage, layer]])
            assert found[stage, layer] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.61, 0.95, -0.1, float("nan")])
def test_beyond_the_last_point_is_an_error_with_the_range(sparsity: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"glass_sparsity from 0 to 0\.6, got") as caught:
        make_table().thresholds_at(sparsity)
    assert caught.value.param == "glass_sparsity"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsities": SPARSITIES[:2]}, r"thresholds must be .* of shape \(2, 2, 3\)"),
        ({"sparsities": SPARSITIES[:0]}, r"sparsities must be .* of shape \(1,\)"),
        ({"thresholds": THRESHOLDS[:, :1].copy()}, r"thresholds must be .* of shape \(3, 2, 3\)"),
        ({"thresholds": THRESHOLDS[..., :2].copy()}, r"thresholds must be .* of shape \(3, 2, 3\)"),
        ({"thresholds": THRESHOLDS.astype(np.float64)}, "thresholds must be contiguous float32"),
        ({"thresholds": np.full((3, 2, 3), np.inf, np.float32)}, "thresholds must be finite"),
        ({"thresholds": -THRESHOLDS}, "not negative"),
        ({"sparsities": SPARSITIES[::-1].copy()}, "must ascend"),
        ({"sparsities": np.array([0.0, 0.1, 0.2], np.float32)}, "must ascend"),
        ({"sparsities": np.array([0.1, 0.2, 1.0], np.float32)}, "must ascend"),
    ],
)
def test_impossible_tables_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_table(**changes)


def refined_statistics(**changes: Any) -> GlobalStatistics:
    profiles = {"uniform": uniform_profile(NUM_LAYERS)}
    return make_statistics(profiles=profiles, refinement={"uniform": make_table(**changes)})


def test_an_artifact_keeps_its_tables_and_their_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_artifact(first, refined_statistics())
    table = read_artifact(first).refinement["uniform"]
    np.testing.assert_array_equal(table.sparsities, SPARSITIES)
    np.testing.assert_array_equal(table.thresholds, THRESHOLDS)
    for stage in STAGES:
        values, found = getattr(WEIGHTS, stage), getattr(table.weights, stage)
        np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-6 * float(values.max()))
        np.testing.assert_array_equal(found, as_stored(values))
        np.testing.assert_array_equal(found, as_stored(found))
    write_artifact(second, read_artifact(first))
    assert second.read_bytes() == first.read_bytes()


def test_an_artifact_without_tables_has_none(tmp_path: Path) -> None:
    path = tmp_path / "artifact.safetensors"
    write_artifact(path, make_statistics())
    assert read_artifact(path).refinement == {}


def test_tables_must_fit_profiles_and_neurons() -> None:
    with pytest.raises(ArtifactError, match="refinement of profile 'uniform': there is no such profile"):
        make_statistics(refinement={"uniform": make_table()})
    with pytest.raises(ArtifactError, match=r"expected weights of shape \(3, 40\), got \(3, 39\)"):
        refined_statistics(weights=random_weights(31, (NUM_LAYERS, 39)))
    with pytest.raises(ArtifactError, match=r"expected weights of shape \(3, 40\), got \(2, 40\)"):
        refined_statistics(thresholds=THRESHOLDS[..., :2].copy(), weights=random_weights(31, (2, 40)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refinement.uniform.thresholds": None}, r"missing tensors \['refinement.uniform.thresholds'\]"),
        ({"refinement.uniform.more": THRESHOLDS}, r"unknown tensors \['refinement.uniform.more'\]"),
        ({"refinement.uniform.sparsities": THRESHOLDS}, "expected 1 axes and 1 to 1024"),
        ({"refinement.uniform.thresholds": THRESHOLDS[:2]}, r"thresholds: expected F32 of shape \(3, 2, 3\)"),
        ({"refinement.uniform.thresholds": -THRESHOLDS}, "refinement of profile 'uniform': .* not negative"),
        ({"refinement.uniform.down_weights": None}, r"missing tensors \['refinement.uniform.down_weights'\]"),
        ({"refinement.uniform.inputs_weights.scale": None}, r"missing tensors \['refinement.*inputs_weights.scale'\]"),
        ({"refinement.uniform.up_weights": WEIGHTS.down}, r"unknown tensors \['refinement.uniform.up_weights'\]"),
        ({"refinement.uniform.down_weights": WEIGHTS.down}, r"down_weights: expected F16 of shape \(3, 40\)"),
        ({"refinement.uniform.down_weights": np.full(SHAPE, np.inf, np.float16)}, "down must be finite"),
        ({"refinement.uniform.down_weights.scale": np.full(3, -1, np.float32)}, "not negative"),
        ({"refinement.uniform.inputs_weights": np.ones(3, np.float16)}, "expected 2 axes and 1 to 131072 along axis 1"),
        ({"refinement.uniform.inputs_weights": np.ones((3, 0), np.float16)}, "expected 2 axes and 1 to 131072"),
        ({"refinement.uniform.inputs_weights": np.ones((2, 24), np.float16)}, r"expected F16 of shape \(3, 24\)"),
    ],
)
def test_hostile_tables_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refuse(tmp_path / "artifact.safetensors", refined_statistics(), changes, message)


def refuse(path: Path, statistics: GlobalStatistics, changes: dict[str, Any], message: str) -> None:
    write_artifact(path, statistics)
    with safe_open(str(path), framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(path)
