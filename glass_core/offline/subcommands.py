"""Commands of the `glass` program and how they become parsers, at the top and one level down (`glass bench decode`)."""

import argparse
from collections.abc import Mapping
from typing import Protocol


class Command(Protocol):
    """What a command's module exports."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Command], *, dest: str, metavar: str) -> None:
    """One subparser per command, described by its module's docstring. The chosen name goes to `dest`."""
    subparsers = parser.add_subparsers(dest=dest, metavar=metavar, required=True)
    for name, command in commands.items():
        subparser = subparsers.add_parser(
            name,
            help=command.HELP,
            description=(command.__doc__ or command.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
