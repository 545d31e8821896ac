"""The sandboxed chat template: HF's dialect, refusals as request errors, bounded work."""

import json
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError, UndefinedError

from glass_core.errors import CheckpointError, InvalidRequestError
from glass_core.text import load_text_processor
from glass_core.text.chat_template import ChatTemplate
from tests.tiny_text import byte_tokenizer, tiny_text_processor

USER = [{"role": "user", "content": "hi"}]
TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"


def render(source: str, seconds: float = 5.0) -> str:
    return ChatTemplate(source, {}, render_seconds=seconds).render(USER)


def test_smollm2_greets_with_its_default_system_message() -> None:
    source = (TEMPLATES / "smollm2.jinja").read_text()
    assert ChatTemplate(source, {}).render(USER) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (["user", "user"], "must alternate"),
        (["assistant"], "must alternate"),
        (["user", "narrator"], "Only user and assistant"),
    ],
)
def test_a_wrong_order_of_roles_is_the_callers_error(roles: list[str], reason: str) -> None:
    template = ChatTemplate((TEMPLATES / "mistral_instruct_v03.jinja").read_text(), {"bos_token": "", "eos_token": ""})
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        template.render([{"role": role, "content": "x"} for role in roles])
    assert caught.value.param == "messages"


def test_a_template_that_breaks_on_the_messages_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequestError, match="cannot render") as caught:
        ChatTemplate("{{ messages[0].content + 'x' }}", {}).render([{"role": "user", "content": 1}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for a in 'x' * 90000 %}{% for b in 'x' * 90000 %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{% macro n(k) %}"
        "{% if k %}{{ n(k - 1) }}{{ n(k - 1) }}{% endif %}{% endmacro %}{{ n(60) }}",
    ],
)
def test_endless_work_meets_the_deadline(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="took too long"):
        render(source, seconds=0.05)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 12 }}",
        "{{ (10 ** 12) * 'x' }}",
        "{{ [1] * 10 ** 12 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set x = 'x' * 1000000 %}{% for i in range(90000) %}{{ x }}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_template_cannot_fill_the_memory(source: str) -> None:
    with pytest.raises(InvalidRequestError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ messages.append(1) }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        render(source)
    assert isinstance(caught.value.__cause__, SecurityError | UndefinedError)


def test_concatenation_stringifies_like_jinja() -> None:
    assert render("{{ 1 ~ 'a' ~ none ~ (2 ~ 3) }}") == "1aNone23"


def test_a_generation_block_may_not_assign_to_the_outside() -> None:
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render(source) == "21"


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% generation %}", "{{ 'a' | no_such_filter }}"])
def test_a_malformed_template_is_refused_at_load(source: str) -> None:
    with pytest.raises(CheckpointError, match="line 1"):
        ChatTemplate(source, {})


def test_a_model_without_template_says_so() -> None:
    processor = tiny_text_processor(template=None)
    assert not processor.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template"):
        processor.render_chat(USER)


def write_model(folder: Path, **files: object) -> Path:
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ eos_token }}old"},
        generation_config={"eos_token_id": [3, 5]},
        config={"eos_token_id": 7},
    )
    assert load_text_processor(tmp_path).render_chat(USER) == "<|im_end|>old"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}new")
    processor = load_text_processor(tmp_path)
    assert processor.render_chat(USER) == "<|im_end|>new"
    assert processor.stop_token_ids == (3, 5, *processor.encode("<|im_end|>"))
    assert processor.decode(processor.encode_prompt("thé")) == "thé"


def test_the_eos_of_config_json_counts_when_generation_config_has_none(tmp_path: Path) -> None:
    assert load_text_processor(write_model(tmp_path, config={"eos_token_id": 7})).stop_token_ids == (7,)


def test_the_default_one_of_several_templates_counts(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    folder = write_model(tmp_path, tokenizer_config={"chat_template": templates})
    assert load_text_processor(folder).render_chat(USER) == "d"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x", "template": ""}]}', "none named 'default'"),
        ("config.json", '{"eos_token_id": "2"}', "must be an integer"),
    ],
)
def test_a_broken_folder_names_the_file(tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    write_model(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        load_text_processor(tmp_path)


@pytest.mark.parametrize(("tag", "depth"), [("if 1", 500), ("if 1", 110), ("for i in messages", 30)])
def test_a_template_nested_too_deeply_is_refused_at_load(tag: str, depth: int) -> None:
    with pytest.raises(CheckpointError, match="nested too deeply"):
        ChatTemplate(f"{{% {tag} %}}" * depth + f"{{% end{tag.split(maxsplit=1)[0]} %}}" * depth, {})
