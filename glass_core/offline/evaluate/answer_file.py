"""Reference answers kept in a file: sampling them takes most of a run, and several runs score the same ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glass_core.checkpoint.json_file import read_json_object
from glass_core.errors import ConfigurationError
from glass_core.offline.evaluate.answers import Answer
from glass_core.offline.results import write_result


def kept_answers(path: Path, origin: Mapping[str, Any], sample: Callable[[], list[Answer]]) -> list[Answer]:
    """The file's answers, sampled and written first when it is not there. `origin` is all that they depend on.

    Raises ConfigurationError for a file that is damaged or of another origin, naming the difference.
    """
    if path.is_file():
        return _read(path, origin)
    answers = sample()
    found = [{"prompt": answer.prompt, "token_ids": answer.token_ids} for answer in answers]
    write_result(path, {"origin": dict(origin), "answers": found})
    return answers


def _read(path: Path, origin: Mapping[str, Any]) -> list[Answer]:
    content = read_json_object(path)
    theirs, entries = content.get("origin"), content.get("answers")
    if not isinstance(theirs, dict) or not isinstance(entries, list):
        raise ConfigurationError(f"{path}: expected an object with origin and answers")
    for name, value in origin.items():
        if theirs.get(name) != value:
            raise ConfigurationError(
                f"{path}: its answers have {name} {_short(theirs.get(name))}, this run {_short(value)}"
            )
    return [Answer(_tokens(path, entry, "prompt"), _tokens(path, entry, "token_ids")) for entry in entries]


def _tokens(path: Path, entry: Any, name: str) -> tuple[int, ...]:
    tokens: Sequence[Any] | None = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ConfigurationError(f"{path}: every answer needs a list of numbers {name}, got {_short(entry)}")
    return tuple(tokens)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
