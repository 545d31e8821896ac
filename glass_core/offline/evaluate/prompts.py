"""Prompt files: JSON lines, one object with an `instruction` per line; the layout of the Self-Instruct seed tasks."""

import json
from pathlib import Path
from typing import Any

from glass_core.errors import ConfigurationError

DEFAULT_MAX_CHARS = 120


def read_prompts(path: Path, *, limit: int, max_chars: int = DEFAULT_MAX_CHARS) -> list[str]:
    """The first `limit` usable instructions, in the file's order.

    Skipped, because the instruction alone would not make sense or not be short: entries whose first `instances` item
    has a non-empty `input`, and instructions of `max_chars` characters or more.
    Raises ConfigurationError naming file and line for what is not such an object, and when nothing is left.
    """
    if limit < 1:
        raise ConfigurationError(f"limit must be at least 1, got {limit}")
    prompts: list[str] = []
    for number, line in enumerate(_read_lines(path), start=1):
        if len(prompts) == limit:
            break
        if not line.strip():
            continue
        entry = _parse(path, number, line)
        if not _has_input(entry) and len(entry["instruction"]) < max_chars:
            prompts.append(entry["instruction"])
    if not prompts:
        raise ConfigurationError(f"{path}: no instruction under {max_chars} characters that needs no input")
    return prompts


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as a prompt file ({error})") from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path}, line {number}: expected a JSON object, got invalid JSON ({error})"
        ) from error
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{path}, line {number}: expected a JSON object, got {type(entry).__name__}")
    instruction = entry.get("instruction")
    if not isinstance(instruction, str) or not instruction:
        raise ConfigurationError(
            f"{path}, line {number}: `instruction` must be a non-empty string, got {instruction!r}"
        )
    return entry


def _has_input(entry: dict[str, Any]) -> bool:
    instances = entry.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    return isinstance(first, dict) and bool(first.get("input"))
