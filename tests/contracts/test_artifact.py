"""The artifacts that ship with the package: readable, small, and telling how they were made."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from glass_core.expected_kl import REFINED
from glass_core.offline.cli import build_parser, load_commands
from glass_core.sparsity.artifact import read_artifact
from glass_core.sparsity.budget import SENSITIVITY, TUNED
from tests.contracts.repository import ROOT

ARTIFACTS = sorted((ROOT / "glass_core" / "data").glob("*.safetensors"))
MAX_BYTES = 3 << 19
MANIFEST_KEYS = {
    "format_version",
    "model_name",
    "fingerprint",
    "num_layers",
    "intermediate_size",
    "formulas",
    "corpus",
    "versions",
    "command",
}
CORPUS_KEYS = {"source", "seed", "num_sequences", "num_tokens", "sampler"}


def test_one_ships() -> None:
    assert len(ARTIFACTS) >= 1


@pytest.fixture(params=ARTIFACTS, ids=lambda path: path.stem)
def artifact(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_is_small(artifact: Path) -> None:
    assert artifact.stat().st_size <= MAX_BYTES


def test_manifest_in_the_file_has_the_keys(artifact: Path) -> None:
    with safe_open(str(artifact), framework="numpy") as file:
        manifest = json.loads(file.metadata()["manifest"])
    assert manifest.keys() >= MANIFEST_KEYS
    assert manifest["corpus"].keys() >= CORPUS_KEYS


def test_reads_back_finite_and_of_the_promised_shape(artifact: Path) -> None:
    statistics = read_artifact(artifact)
    manifest = statistics.manifest
    assert manifest.to_json_object().keys() >= MANIFEST_KEYS
    for values in (statistics.activation_l1, statistics.activation_l2, statistics.impact_abs):
        assert values is not None
        assert values.shape == (manifest.num_layers, manifest.intermediate_size)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert (values.max(axis=1) > 0).all()


def test_the_command_that_made_it_still_parses(artifact: Path) -> None:
    words = shlex.split(read_artifact(artifact).manifest.command)
    assert words[:2] == ["glass", "calibrate"]
    build_parser(load_commands()).parse_args(words[1:])


def test_the_tuned_profile_ships_with_what_it_is_expected_to_lose(artifact: Path) -> None:
    statistics = read_artifact(artifact)
    words = shlex.split(str(statistics.manifest.corpus["tuning_command"]))
    assert words[:2] == ["glass", "tune"]
    build_parser(load_commands()).parse_args(words[1:])
    default, tuned = (statistics.expected_kl[name][REFINED] for name in (SENSITIVITY, TUNED))
    assert tuned.sparsities == default.sparsities
    assert np.log(tuned.kl).mean() < np.log(default.kl).mean()
