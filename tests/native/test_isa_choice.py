"""Which instruction set is used, and what is said about those that are not: notes, the log, `glass doctor`."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from glass_core.config import EngineConfig
from glass_core.engine.loading import load_engine
from glass_core.errors import ConfigurationError
from glass_core.offline import diagnosis
from glass_core.offline.cli import main
from glass_core.offline.diagnosis import Finding, Status
from glass_core.runners.native import extension
from glass_core.runners.native.types import IsaRow
from tests.tiny_models import save_tiny_model

native = pytest.importorskip("glass_core.runners.native._native", reason="the native extension is not built")

STATES: list[IsaRow] = [
    ("amx_int8", "this processor has no AMX-INT8", False),
    ("avx512_vnni", "its kernels failed their check: dot_rows computes wrong results", True),
    ("portable", "", False),
]
NOTE = "instruction set avx512_vnni is not used: its kernels failed their check: dot_rows computes wrong results"


@pytest.fixture
def broken_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension on a machine whose AVX-512 kernels compute wrong results."""
    kernels = SimpleNamespace(
        isa_states=lambda: STATES, passed_over_isas=lambda: STATES[:2], choose_isa=lambda isa: isa or "portable"
    )
    monkeypatch.delenv("GLASS_CPU_ISA", raising=False)
    module = SimpleNamespace(kernels=kernels, __file__=native.__file__)
    monkeypatch.setattr(extension, "load_extension", lambda: module)
    monkeypatch.setattr(diagnosis, "load_extension", lambda: module)


def instruction_set_finding() -> Finding:
    return next(finding for finding in diagnosis.diagnose() if finding.subject == "instruction set")


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASS_HOME", str(tmp_path / "home"))
    source = save_tiny_model(tmp_path / "source", "llama")
    assert main(["pull", str(source), "--name", "tiny"]) == 0
    return tmp_path / "home/models/tiny"


def test_the_best_usable_one_is_chosen_and_the_better_ones_are_explained() -> None:
    states: list[IsaRow] = native.kernels.isa_states()
    usable = [name for name, problem, _ in states if not problem]
    assert native.kernels.available_isas() == usable
    assert native.kernels.choose_isa("") == usable[0]
    passed_over = native.kernels.passed_over_isas()
    assert passed_over == states[: len(passed_over)]
    assert all(problem for _, problem, _ in passed_over)
    assert states[len(passed_over)][0] == usable[0]
    assert not any(defective for _, _, defective in states)


def test_an_unusable_one_is_refused_with_what_is_there_and_why_the_rest_is_not() -> None:
    with pytest.raises(ValueError, match=r"^instruction set 'mmx' cannot be used; available: .*portable") as caught:
        native.kernels.choose_isa("mmx")
    for name, problem, _ in native.kernels.isa_states():
        assert (f"{name} ({problem})" if problem else name) in str(caught.value)


@pytest.mark.usefixtures("broken_avx512")
def test_wrong_kernels_are_noted_unless_an_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension.kernel_notes() == (NOTE,)
    monkeypatch.setenv("GLASS_CPU_ISA", "portable")
    assert extension.kernel_notes() == ()


@pytest.mark.usefixtures("broken_avx512")
@pytest.mark.parametrize("runner", ["auto", "native"])
def test_wrong_kernels_are_logged_once_and_in_the_engine_info(
    pulled: Path, runner: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load_engine(EngineConfig(model_path=pulled, model_name="tiny", runner=runner, num_threads=1))
    assert NOTE in engine.info.notes
    assert [record.getMessage() for record in caplog.records].count(NOTE) == 1


def test_the_engine_says_its_instruction_set_and_threads(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_CPU_ISA", "portable")
    info = load_engine(EngineConfig(model_path=pulled, model_name="tiny", num_threads=2)).info
    assert (info.runner, info.isa, info.num_threads) == ("native", "portable", 2)
    info = load_engine(EngineConfig(model_path=pulled, model_name="tiny", runner="torch_runner")).info
    assert info.isa is None
    assert info.num_threads is not None and info.num_threads >= 1


def test_a_server_with_an_unusable_one_does_not_start(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_CPU_ISA", "mmx")
    with pytest.raises(ConfigurationError, match=r"instruction set 'mmx' cannot be used; available"):
        load_engine(EngineConfig(model_path=pulled, model_name="tiny"))
    finding = instruction_set_finding()
    assert finding.status is Status.FAIL
    assert finding.detail.startswith("GLASS_CPU_ISA: instruction set 'mmx' cannot be used; available: ")


@pytest.mark.usefixtures("broken_avx512", "pulled")
def test_doctor_warns_of_wrong_kernels() -> None:
    expected = f"portable of portable; not amx_int8: {STATES[0][1]}; not avx512_vnni: {STATES[1][1]}"
    assert instruction_set_finding() == Finding("instruction set", Status.WARN, expected)


@pytest.mark.usefixtures("pulled")
def test_doctor_names_the_instruction_set_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASS_CPU_ISA", "portable")
    finding = instruction_set_finding()
    assert finding.status is Status.OK
    assert finding.detail.startswith(f"portable of {native.kernels.available_isas()[0]}")
