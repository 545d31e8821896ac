"""`--chat-template`: a file or a name in place of the checkpoint's own, rendered as transformers does."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from glass_core.errors import CheckpointError, ConfigurationError
from glass_core.text import load_text_processor
from tests.tiny_models import CHAT_TEMPLATE, save_tiny_tokenizer

USER = [{"role": "user", "content": "hi"}]
TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"
NAMED = [{"name": "default", "template": "d{{ messages[0].content }}"}, {"name": "rag", "template": "r{{ messages }}"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer without a chat template."""
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    return tmp_path


def add_named_templates(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": NAMED}))


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("*.jinja")))
def test_a_file_renders_as_transformers_renders_it(folder: Path, name: str) -> None:
    conversation = [*USER, {"role": "assistant", "content": "ho"}, *USER]
    expected = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        conversation, chat_template=(TEMPLATES / name).read_text(), tokenize=False, add_generation_prompt=True
    )
    text = load_text_processor(folder, str(TEMPLATES / name))
    assert text.render_chat(conversation) == expected
    assert text.template_origin == f"--chat-template {name}"


def test_a_file_replaces_the_checkpoints_own_even_a_broken_one(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match="malformed"):
        load_text_processor(folder)
    mine = folder / "mine.jinja"
    mine.write_text("{{ eos_token }}{{ messages[0].content }}")
    assert load_text_processor(folder, str(mine)).render_chat(USER) == "<|im_end|>hi"


def test_a_name_picks_one_of_the_checkpoints(folder: Path) -> None:
    add_named_templates(folder)
    assert load_text_processor(folder).render_chat(USER) == "dhi"
    text = load_text_processor(folder, "rag")
    assert text.render_chat(USER).startswith("r[")
    assert text.template_origin == "the checkpoint's tokenizer_config.json, template 'rag'"


def test_the_origin_of_the_checkpoints_own(folder: Path) -> None:
    assert load_text_processor(folder).template_origin is None
    add_named_templates(folder)
    assert load_text_processor(folder).template_origin == "the checkpoint's tokenizer_config.json"
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert load_text_processor(folder).template_origin == "the checkpoint's chat_template.jinja"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{% for %}", "malformed at line 1"),
        (b"{{ no_such_function() }}{{ messages[0].content }}", "'no_such_function' is undefined"),
        (b"{{ raise_exception('no users here') }}", "no users here"),
        (b"just text", "leaves the user's message out"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_at_start(folder: Path, content: bytes, reason: str) -> None:
    (folder / "bad.jinja").write_bytes(content)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_text_processor(folder, str(folder / "bad.jinja"))
    assert "chat_template" in str(caught.value)
    assert "bad.jinja" in str(caught.value)


def test_what_is_neither_file_nor_name_is_refused_with_the_names(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"chat_template: expected a Jinja file .*no named .* got 'rag'"):
        load_text_processor(folder, "rag")
    add_named_templates(folder)
    with pytest.raises(ConfigurationError, match=r"named templates: default, rag\), got 'nope'"):
        load_text_processor(folder, "nope")
