"""The artifact's file: round trip, precision, size, identity, and every way it can be wrong."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glass_core.errors import ArtifactError, ArtifactMismatchError
from glass_core.sparsity import artifact, manifest
from glass_core.sparsity.artifact import (
    GlobalStatistics,
    check_fingerprint,
    read_artifact,
    read_manifest,
    shipped_artifact,
    write_artifact,
)
from glass_core.sparsity.budget import Profile
from tests.core.sparsity_samples import (
    IMPACT,
    NUM_LAYERS,
    NUM_NEURONS,
    make_manifest,
    make_statistics,
    property_test,
    random_scores,
)

PROFILES = {
    "uniform": Profile("uniform", (1.0, 1.0, 1.0)),
    "tuned": Profile("tuned", (0.1, 1 / 3, 2.0), (0.0, 0.5, 1.0)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "tiny.safetensors"


def stored(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and JSON document of a freshly written artifact."""
    write_artifact(path, make_statistics(profiles=PROFILES))
    with safetensors.safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["manifest"])
    return safetensors.numpy.load_file(path), document


def rewrite(path: Path, tensors: dict[str, Any], document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    safetensors.numpy.save_file(tensors, path, {"manifest": text})


def test_round_trip(path: Path) -> None:
    statistics = make_statistics(profiles=PROFILES)
    write_artifact(path, statistics)
    read = read_artifact(path)
    assert read.manifest == statistics.manifest == read_manifest(path)
    assert read.profiles == PROFILES
    assert dict(read.tensors()).keys() == dict(statistics.tensors()).keys()
    for name, tensor in statistics.tensors():
        found = getattr(read, name)
        assert found.dtype == np.float32
        bound = 2**-11 * np.abs(tensor) + 1e-12 * np.abs(tensor).max()
        assert (np.abs(found - tensor) <= bound).all(), name
    assert read.sensitivity is not None
    np.testing.assert_array_equal(read.sensitivity, statistics.sensitivity)
    assert read.down_norm is None


def test_optional_tensors_may_be_missing(path: Path) -> None:
    write_artifact(path, make_statistics(without=(*IMPACT, "sensitivity")))
    read = read_artifact(path)
    assert (read.impact_abs, read.impact_rms, read.sensitivity, read.profiles) == (None, None, None, {})
    assert not read.has_impact


@property_test
@given(
    hnp.arrays(
        np.float32,
        (NUM_LAYERS, NUM_NEURONS),
        elements=st.floats(0, width=32, allow_infinity=False) | st.sampled_from([0.0, 1e-45, 1e-38, 3.4e38]),
    )
)
def test_any_finite_statistics_can_be_stored(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("artifact") / "a.safetensors"
    write_artifact(path, make_statistics(activation_l1=values))
    found = read_artifact(path).activation_l1
    largest = values.max(axis=1, keepdims=True).astype(np.float64)
    # relative float16 precision, plus the subnormal step of a layer whose largest value is itself nearly subnormal
    np.testing.assert_array_less(np.abs(found - values.astype(np.float64)), 1e-3 * values + 1e-9 * largest + 1e-43)


def test_the_default_models_size_stays_under_a_megabyte(path: Path) -> None:
    shape = (30, 1536)
    names = ["impact_abs", "impact_rms", "mean_abs_up", "gate_rms", "mean_z", "mean_square_z", "down_norm"]
    tensors: dict[str, Any] = {name: random_scores(0, shape) for name in [*names, "activation_l1", "activation_l2"]}
    identity = make_manifest(num_layers=shape[0], intermediate_size=shape[1])
    write_artifact(path, GlobalStatistics(manifest=identity, sensitivity=np.ones(30, np.float32), **tensors))
    assert path.stat().st_size < 1_000_000


def test_writing_is_deterministic_and_leaves_no_temporary_file(path: Path) -> None:
    write_artifact(path, make_statistics(profiles=PROFILES))
    first = path.read_bytes()
    write_artifact(path, make_statistics(profiles=dict(reversed(PROFILES.items()))))
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_artifact(path, make_statistics())
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_artifact(path, make_statistics(without=IMPACT))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_plain_float32_is_read_too(path: Path) -> None:
    tensors, document = stored(path)
    del tensors["activation_l1.scale"]
    tensors["activation_l1"] = random_scores(1)
    rewrite(path, tensors, document)
    np.testing.assert_array_equal(read_artifact(path).activation_l1, random_scores(1))


# --- identity ---


def test_fingerprint_mismatch_gives_both() -> None:
    statistics = make_statistics()
    check_fingerprint(statistics, "f00d")
    with pytest.raises(ArtifactMismatchError, match=r"fingerprint f00d, the loaded model has fingerprint beef.*calib"):
        check_fingerprint(statistics, "beef")


def test_shipped_artifact_is_found_by_fingerprint(tmp_path: Path) -> None:
    assert shipped_artifact("two", directory=tmp_path / "absent") is None
    for name in ("one", "two"):
        write_artifact(tmp_path / f"{name}.safetensors", make_statistics(manifest=make_manifest(fingerprint=name)))
    assert shipped_artifact("two", directory=tmp_path) == tmp_path / "two.safetensors"
    assert shipped_artifact("three", directory=tmp_path) is None


def test_an_unknown_model_has_no_shipped_artifact() -> None:
    assert shipped_artifact("no such fingerprint") is None


def test_manifest_is_read_without_the_tensors(path: Path) -> None:
    tensors, document = stored(path)
    tensors["activation_l1"] = np.zeros(1, np.float32)
    rewrite(path, tensors, document)
    assert read_manifest(path) == make_manifest()


# --- what GlobalStatistics refuses ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_l1": random_scores(0, (3, 41))}, r"activation_l1: expected shape \(3, 40\), got \(3, 41\)"),
        ({"sensitivity": np.ones(2, np.float32)}, r"sensitivity: expected shape \(3,\), got \(2,\)"),
        ({"mean_z": np.zeros((3, 40))}, "mean_z: expected float32, got float64"),
        ({"activation_l2": np.full((3, 40), np.nan, np.float32)}, "activation_l2: contains NaN"),
        ({"sensitivity": np.array([0, 1, np.inf], np.float32)}, "sensitivity: contains NaN or infinity"),
        ({"mean_square_z": np.full((3, 40), -1, np.float32)}, "mean_square_z: expected non-negative.*-1"),
        ({"impact_rms": None}, "impact_abs and impact_rms are measured together"),
        ({"profiles": {"a": Profile("b", (1.0,) * 3)}}, "profile 'b' is stored under another name, 'a'"),
        ({"profiles": {"a": Profile("a", (1.0,) * 4)}}, "profile 'a': expected 3 layers, got 4"),
    ],
)
def test_impossible_statistics_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        make_statistics(**changes)


# --- corrupt files ---


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.safetensors: cannot be read \(No such file"):
        read_artifact(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, pickle.dumps({"activation_l1": [1.0]})])
def test_other_file_formats(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.safetensors: expected a complete safetensors file"):
        read_artifact(path)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_artifact(tmp_path)


@property_test
@given(share=st.floats(0, 0.999))
def test_a_truncated_file(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    path = tmp_path_factory.mktemp("artifact") / "a.safetensors"
    write_artifact(path, make_statistics())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactError, match="expected a complete safetensors file"):
        read_artifact(path)


@property_test
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("artifact") / "a.safetensors"
    write_artifact(path, make_statistics(profiles=PROFILES))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        read = read_artifact(path)
    except ArtifactError:
        return
    assert all(np.isfinite(tensor).all() for _, tensor in read.tensors())


def test_a_huge_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(path)
    monkeypatch.setattr(artifact, "MAX_FILE_BYTES", 100)
    with pytest.raises(ArtifactError, match="at most 100 bytes are read, the file has"):
        read_artifact(path)


def test_a_huge_manifest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(path)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_CHARS", 10)
    with pytest.raises(ArtifactError, match="at most 10 characters are read"):
        read_artifact(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_no_manifest(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"activation_l1": random_scores(0)}, path, metadata)
    with pytest.raises(ArtifactError, match="expected a file written by `glass calibrate`"):
        read_artifact(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected valid JSON"),
        ('{"format_version": NaN}', "NaN is not JSON"),
        ("[" * 200_000, "expected valid JSON"),
        ("[]", "expected a JSON object, got list"),
    ],
)
def test_a_manifest_that_is_no_json_object(path: Path, text: str, message: str) -> None:
    tensors, _ = stored(path)
    rewrite(path, tensors, text)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2, this version of glass reads 3.*glass calibrate"),
        ({"format_version": True}, "format_version is True"),
        ({"surprise": 1}, r"unknown fields \['surprise'\]"),
        ({"model_name": None}, "model_name must be a string, got None"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"num_layers": True}, "num_layers must be a positive integer, got True"),
        ({"intermediate_size": 40.0}, "intermediate_size must be a positive integer, got 40.0"),
        ({"formulas": {"a": 1}}, "formulas must be an object of plain values"),
        ({"corpus": {"seed": [1]}}, "corpus must be an object of plain values"),
        ({"versions": []}, r"versions must be an object of plain values, got \[\]"),
        ({"profiles": []}, r"profiles must be an object, got \[\]"),
        ({"profiles": {"p": {"prune_weights": [1, 1, 1]}}}, "profile 'p': expected an object with prune_weights"),
        ({"profiles": {"p": {"prune_weights": "111", "lambdas": None}}}, "'p': expected a list of numbers, got '111'"),
        ({"profiles": {"p": {"prune_weights": [1, 1, True], "lambdas": None}}}, "'p': expected a list of numbers"),
        ({"profiles": {"p": {"prune_weights": [1, 1, -1], "lambdas": None}}}, "'p': profile 'p': prune weights"),
        ({"profiles": {"p": {"prune_weights": [1, 1], "lambdas": None}}}, "'p': expected 3 layers, got 2"),
        ({"num_layers": 4}, r"activation_l1: expected F16 of shape \(4, 40\), got F16 of shape \(3, 40\)"),
    ],
)
def test_a_wrong_manifest_field(path: Path, changes: dict[str, Any], message: str) -> None:
    tensors, document = stored(path)
    rewrite(path, tensors, document | changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_artifact(path)
    assert str(path) in str(caught.value)


def test_a_missing_manifest_field(path: Path) -> None:
    tensors, document = stored(path)
    del document["command"]
    rewrite(path, tensors, document)
    with pytest.raises(ArtifactError, match=r"missing fields \['command'\]"):
        read_artifact(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_l2": None, "activation_l2.scale": None}, r"missing tensors \['activation_l2'\]"),
        ({"extra": np.zeros(1, np.float32)}, r"unknown tensors \['extra'\]"),
        ({"sensitivity.scale": np.zeros(3, np.float32)}, "unknown tensors"),
        ({"activation_l1": np.zeros((3, 39), np.float16)}, r"F16 of shape \(3, 40\), got F16 of shape \(3, 39\)"),
        ({"activation_l1": np.zeros((3, 40), np.int16)}, "expected F16 .*, got I16"),
        ({"activation_l1.scale": None}, r"expected F32 of shape \(3, 40\), got F16"),
        ({"activation_l1.scale": np.ones(2, np.float32)}, r"activation_l1\.scale: expected F32 of shape \(3,\)"),
        ({"activation_l1.scale": np.full(3, 3e38, np.float32)}, "activation_l1: contains NaN or infinity"),
        ({"activation_l1.scale": np.full(3, np.nan, np.float32)}, "activation_l1: contains NaN or infinity"),
        ({"activation_l1.scale": np.full(3, -1.0, np.float32)}, "activation_l1: expected non-negative"),
        ({"impact_rms": None, "impact_rms.scale": None}, "measured together"),
        ({"impact_rms": None}, "impact_rms.scale .*without its tensor"),
    ],
)
def test_wrong_tensors(path: Path, changes: dict[str, Any], message: str) -> None:
    tensors, document = stored(path)
    tensors = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    rewrite(path, tensors, document)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(path)
