"""What the documents name exists: `make` targets, `glass` subcommands with their flags, files of the repository."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from glass_core.offline.cli import build_parser, load_commands
from tests.contracts.repository import ROOT

DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
_SHELL_BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"\w+=.*")
_END_OF_COMMAND = {"|", "&", "&&", ";", ">", "2>&1"}


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each command in the text's shell blocks; continuation lines joined, `VAR=value` prefixes dropped."""
    for block in _SHELL_BLOCK.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if is_ours(line) else []
            while words and _ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            if words:
                yield until_operator(words)


def is_ours(line: str) -> bool:
    """Other commands (curl with a quoted body over several lines) need no parsing."""
    return re.match(r"(\$ )?(\w+=\S+ )*(make|(\S+/)?glass) ", line) is not None


def until_operator(words: list[str]) -> list[str]:
    operators = [index for index, word in enumerate(words) if word in _END_OF_COMMAND]
    return words[: operators[0]] if operators else words


def documented(program: str) -> list[tuple[str, list[str]]]:
    return [
        (name, words[1:])
        for name in DOCUMENTS
        for words in command_lines((ROOT / name).read_text())
        if Path(words[0]).name == program
    ]


def readable(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_documents_show_commands() -> None:
    assert len(documented("make")) >= 2
    assert len(documented("glass")) >= 2


@pytest.mark.parametrize(("document", "words"), documented("make"), ids=readable)
def test_make_target_exists(document: str, words: list[str]) -> None:
    targets = {word for word in words if "=" not in word and not word.startswith("-")}
    assert targets <= make_targets(), document


@pytest.mark.parametrize(("document", "words"), documented("glass"), ids=readable)
def test_glass_command_parses(document: str, words: list[str]) -> None:
    try:
        build_parser(load_commands()).parse_args(words)
    except SystemExit as stop:
        assert stop.code == 0, f"{document}: glass {' '.join(words)}"


def test_make_help_lists_every_documented_target() -> None:
    described = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert described >= {"run", "test", "lint", "format", "bench", "clean", "help"}


def test_command_lines_reads_shell_blocks_only() -> None:
    text = "glass no\n```bash\n$ X=1 glass serve a \\\n  --port 1  # why\nmake run | tee log\ncurl x -d '{\n}'\n```\n"
    assert list(command_lines(text)) == [["glass", "serve", "a", "--port", "1"], ["make", "run"]]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_paths_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:server|glass_core|tests|deploy|docker)/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
