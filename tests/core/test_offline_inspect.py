"""`glass inspect` and `glass doctor`: what they print, plot and return."""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from glass_core.config import DEFAULT_MODEL, PREPARED_MANIFEST
from glass_core.expected_kl import ExpectedKl
from glass_core.offline import diagnosis
from glass_core.offline.cli import main
from glass_core.offline.diagnosis import Finding, Status, diagnose, has_failed
from glass_core.offline.inspection.spectra import bar, overlap, spectra, top_share
from glass_core.offline.provenance import machine, versions
from glass_core.runners.native.checkpoint_image import available_formats
from glass_core.runners.native.processor import num_cores
from glass_core.sparsity.budget import uniform_profile
from glass_core.sparsity.global_stats import GlobalStatistics
from tests.core.sparsity_samples import make_manifest
from tests.tiny_models import save_tiny_model


def test_inspect_prints_manifest_layers_and_agreement(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "plots" / "artifact.png"
    assert main(["inspect", str(artifact), "--png", str(png)]) == 0
    printed = capsys.readouterr().out
    for expected in ("artifact of llama", "corpus source", "glass calibrate llama", "3 layers of 88 neurons"):
        assert expected in printed
    assert "activation ∩ impact" in printed
    assert png.read_bytes().startswith(b"\x89PNG")


def test_inspect_compares_a_prompt(artifact: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact), "--prompt", "The quick brown fox", "--model", str(model_dir)]) == 0
    assert "prompt ∩ global" in capsys.readouterr().out


def test_inspect_refuses_another_model_and_half_of_the_flags(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", "llama", seed=1)
    assert main(["inspect", str(artifact), "--prompt", "fox", "--model", str(other)]) == 1
    assert "fingerprint" in capsys.readouterr().err
    assert main(["inspect", str(artifact), "--prompt", "fox"]) == 1
    assert "--prompt and --model belong together" in capsys.readouterr().err


def test_top_share_of_known_layers() -> None:
    flat, peaked, dead = np.ones(10), np.array([9.0] + [1 / 9] * 9), np.zeros(10)
    values = np.stack([flat, peaked, dead]).astype(np.float32)
    np.testing.assert_allclose(top_share(values, 0.1), [0.1, 0.9, 0.0], rtol=1e-6)
    curves = spectra(values)
    assert curves[1, 0] == 1.0
    assert (np.diff(curves, axis=1) <= 0).all()
    assert not curves[2].any()


def test_overlap_counts_shared_neurons() -> None:
    rising = np.arange(8, dtype=np.float32)[np.newaxis]
    swapped = rising.copy()
    swapped[0, [0, 7]] = swapped[0, [7, 0]]
    assert overlap(rising, rising, 0.5) == [1.0]
    assert overlap(rising, -rising, 0.5) == [0.0]
    assert overlap(rising, swapped, 0.5) == [0.75]


def test_bar_fills_with_its_value() -> None:
    assert bar(1.0, width=4) == "████"
    assert bar(0.0, width=4) == "    "
    assert bar(0.375, width=4) == "█▌  "
    assert bar(5.0, width=4) == "████"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_doctor_fails_without_the_default_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert DEFAULT_MODEL in printed
    assert "not pulled" in printed
    assert not home.exists()


def pull_tiny(home: Path, name: str) -> Path:
    """A pulled model as `glass pull` leaves it, from the tiny model."""
    source = save_tiny_model(home.parent / "source", "llama")
    assert main(["pull", str(source), "--name", name]) == 0
    return home / "models" / name


def test_doctor_passes_with_a_model_and_says_that_its_artifact_is_missing(home: Path) -> None:
    pull_tiny(home, DEFAULT_MODEL)
    findings = by_subject(diagnose())
    assert findings[f"model {DEFAULT_MODEL}"].status is Status.WARN
    assert "no artifact" in findings[f"model {DEFAULT_MODEL}"].detail
    assert findings["runner torch_runner"].status is Status.OK
    assert not has_failed(list(findings.values()))


@pytest.mark.parametrize("measured", [True, False])
def test_doctor_says_what_auto_becomes(home: Path, monkeypatch: pytest.MonkeyPatch, measured: bool) -> None:
    pull_tiny(home, DEFAULT_MODEL)
    table = ExpectedKl((0.1, 0.5), (0.01, 0.09), (0.0, 0.0), (0.1, 0.2))
    statistics = GlobalStatistics(
        make_manifest(num_layers=3, intermediate_size=88),
        *(np.ones((3, 88), np.float32),) * 2,
        profiles={"uniform": uniform_profile(3)},
        expected_kl={"uniform": {"a_glass": table}} if measured else {},
    )
    monkeypatch.setattr(diagnosis, "load_statistics", lambda config, fingerprint: (statistics, Path("tiny")))
    finding = by_subject(diagnose())[f"auto sparsity {DEFAULT_MODEL}"]
    if measured:
        assert (finding.status, finding.detail[:28]) == (Status.OK, "15% of the FFN skipped, a_gl")
        assert "expected KL 0.0200, bound 0.02 nats" in finding.detail
    else:
        assert finding.status is Status.WARN
        assert "no expected KL" in finding.detail


def test_doctor_shows_the_costs_of_the_ffn_and_measures_them_on_demand(home: Path) -> None:
    pytest.importorskip("glass_core.runners.native._native")
    folder = pull_tiny(home, DEFAULT_MODEL)
    (name,) = available_formats(folder)
    subject = f"FFN costs {DEFAULT_MODEL} {name}"
    assert by_subject(diagnose())[subject].detail.startswith("not measured yet")
    assert main(["doctor", "--measure"]) == 0
    assert "break-even density by rows 1: " in by_subject(diagnose())[subject].detail
    next(folder.glob(f"native-{name}-*.costs.json")).unlink()
    assert by_subject(diagnose())[subject].detail.startswith("not measured yet")


def test_doctor_tells_a_broken_default_model_from_another_broken_one(home: Path) -> None:
    folder = pull_tiny(home, DEFAULT_MODEL)
    other = pull_tiny(home, "other")
    (folder / "model.safetensors").write_bytes(b"short")
    (other / PREPARED_MANIFEST).write_text(json.dumps({}), encoding="utf-8")
    findings = by_subject(diagnose())
    assert findings[f"model {DEFAULT_MODEL}"].status is Status.FAIL
    assert findings["model other"].status is Status.WARN


def test_doctor_names_missing_packages_and_runners(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    findings = by_subject(diagnose())
    assert findings["python"].status is Status.FAIL
    assert findings["server packages"].status is Status.FAIL
    assert findings["cache folder"].status is Status.WARN
    for name in ("native", "torch_runner"):
        expected = Finding(f"runner {name}", Status.FAIL, f"unavailable: no glass_core.runners.{name}")
        assert findings[f"runner {name}"] == expected


def test_cores_are_counted_where_processes_have_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert num_cores() == 7


def test_provenance_names_machine_and_versions() -> None:
    assert set(machine()) == {"cpu", "num_cores", "memory_bytes", "system"}
    assert {"glass", "python", "torch", "numpy"} == set(versions())
