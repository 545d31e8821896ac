"""Measuring expected KL on a tiny model: resumed or alone the same."""

from pathlib import Path

import pytest

from glass_core.config import glass_home
from glass_core.errors import ConfigurationError
from glass_core.expected_kl import REFINED
from glass_core.offline.calibrate.calibration import CalibrationRun
from glass_core.offline.calibrate.corpus import CorpusSequence
from glass_core.offline.calibrate.expected_kl import Condition, make_table, to_answers
from glass_core.offline.calibrate.settings import CalibrationSettings
from glass_core.offline.cli import main
from glass_core.offline.progress import SilentProgress
from glass_core.runners.torch_runner.model import TorchModel
from glass_core.sparsity.artifact import GlobalStatistics, read_artifact
from glass_core.text import load_text_processor

SETTINGS = CalibrationSettings(source="null", num_sequences=3, sequence_length=24, num_held_out=2)
FLAGS = ["--num-sequences", "3", "--sequence-length", "24", "--num-held-out", "2"]


@pytest.fixture(scope="module")
def artifact(model: TorchModel, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASS_HOME", str(folder / "home"))
        text = load_text_processor(model_dir)
        run = CalibrationRun(model, text, model_dir, model_dir.name, SETTINGS, SilentProgress())
        run.execute(folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture
def statistics(artifact: Path) -> GlobalStatistics:
    return read_artifact(artifact)


def test_calibrating_expects_for_every_profile(statistics: GlobalStatistics) -> None:
    tables = statistics.expected_kl
    assert {profile: set(methods) for profile, methods in tables.items()} == {
        "uniform": {"a_glass"},
        "sensitivity": {"a_glass", REFINED},
    }
    table = tables["sensitivity"]["a_glass"]
    assert table.kl[-1] > table.kl[0] > 0
    assert all(low <= kl <= high for low, kl, high in zip(table.low, table.kl, table.high, strict=True))
    assert tables["sensitivity"][REFINED].max_sparsity == 0.7
    assert statistics.manifest.corpus["num_expected_kl_sequences"] == 3
    assert "expected_kl" in statistics.manifest.formulas


def test_measuring_alone_adds_the_same(
    artifact: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))
    output = tmp_path / "again.safetensors"
    command = ["calibrate", str(model_dir), "--only", "expected-kl", "--artifact", str(artifact)]
    assert main([*command, "--output", str(output), *FLAGS]) == 0
    # reading gives float32 back that are stored as float16: the same tables, the same bytes
    assert read_artifact(output).expected_kl == read_artifact(artifact).expected_kl
    assert output.read_bytes() == artifact.read_bytes()
    assert not any((glass_home() / "work").iterdir())


def test_documents_lend_their_first_quarter_as_prompt() -> None:
    document, chat = CorpusSequence(tuple(range(16))), CorpusSequence(tuple(range(10)), 2, num_prompt=6)
    brief = CorpusSequence(tuple(range(12)), 2, num_prompt=11)
    assert [len(answer.prompt) for answer in to_answers([document, chat, brief])] == [4, 6, 3]


def test_one_answer_is_too_few() -> None:
    short = CorpusSequence((1, 2))
    with pytest.raises(ConfigurationError, match="two held-out answers of two tokens at least, got 1"):
        to_answers([short, CorpusSequence(tuple(range(10)), num_prompt=6)])


def test_tables_never_fall() -> None:
    condition = Condition("uniform", False, (0.1, 0.2, 0.3))
    table = make_table(condition, [[1.0, 2.0], [0.5, 1.5], [-1e-9, 7.0]], [10, 10])
    assert table.kl == (0.15, 0.15, 0.35)
    assert table.low == (0.1, 0.1, 0.1)


def test_an_artifact_without_only_is_refused(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(model_dir), "--artifact", "some.safetensors"]) != 0
    assert "give both or neither" in capsys.readouterr().err
