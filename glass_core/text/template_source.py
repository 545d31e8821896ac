"""Where a model's chat template comes from: the checkpoint's own, or one that the operator names instead."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.errors import CheckpointError, ConfigurationError, InvalidRequestError
from glass_core.text.chat_template import ChatTemplate

TEMPLATE_FILE, CONFIG_FILE = "chat_template.jinja", "tokenizer_config.json"
DEFAULT_NAME = "default"
_PROBE = "Is this text in the prompt?"


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A template's text, and where it was found, in words that name no folder of this machine."""

    text: str
    origin: str


def read_own_template(model_dir: Path, tokenizer_config: Mapping[str, Any]) -> TemplateSource | None:
    """The template of a checkpoint folder: `chat_template.jinja`, else `tokenizer_config.json`, else None.

    Of several named templates the one called `default` counts. Raises CheckpointError when there is none of that name.
    """
    path = model_dir / TEMPLATE_FILE
    if path.is_file():
        return TemplateSource(path.read_text(encoding="utf-8"), f"the checkpoint's {TEMPLATE_FILE}")
    value = tokenizer_config.get("chat_template")
    if value is None:
        return None
    named = _named_templates(tokenizer_config)
    if DEFAULT_NAME not in named:
        raise CheckpointError(f"{CONFIG_FILE} lists several chat templates but none named {DEFAULT_NAME!r}")
    return TemplateSource(named[DEFAULT_NAME], f"the checkpoint's {CONFIG_FILE}")


def read_chosen_template(choice: str, tokenizer_config: Mapping[str, Any]) -> TemplateSource:
    """The template an operator asked for: a Jinja file, or the name of one of those in `tokenizer_config.json`.

    Raises ConfigurationError when it is neither, or the file is not text.
    """
    path, named = Path(choice), _named_templates(tokenizer_config)
    if path.is_file():
        return TemplateSource(_read_text(path), f"--chat-template {path.name}")
    if choice in named:
        return TemplateSource(named[choice], f"the checkpoint's {CONFIG_FILE}, template {choice!r}")
    known = f"named templates: {', '.join(sorted(named))}" if named else "it has no named templates"
    raise ConfigurationError(
        f"chat_template: expected a Jinja file or the name of a template in the checkpoint's {CONFIG_FILE} ({known}), "
        f"got {choice!r}"
    )


def compile_chosen(source: TemplateSource, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """The operator's template, tried on one message of a user.

    Raises ConfigurationError when it is malformed, fails, or leaves the message out: plain text is a valid template
    too, and would answer every conversation alike.
    """
    try:
        template = ChatTemplate(source.text, special_tokens)
        prompt = template.render([{"role": "user", "content": _PROBE}])
    except (CheckpointError, InvalidRequestError) as error:
        raise ConfigurationError(f"chat_template ({source.origin}): {error}") from error
    if _PROBE not in prompt:
        raise ConfigurationError(f"chat_template ({source.origin}): the prompt it makes leaves the user's message out")
    return template


def _named_templates(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    value = tokenizer_config.get("chat_template")
    if isinstance(value, str):
        return {DEFAULT_NAME: value}
    entries = [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
    found = {entry.get("name"): entry.get("template") for entry in entries}
    return {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"chat_template: {path} cannot be read: {error}") from error
