"""The `glass` command: finds the subcommands in `offline/commands`, parses, runs, reports errors in one line."""

import argparse
import importlib
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from glass_core import __version__
from glass_core.errors import GlassError
from glass_core.offline import commands

DESCRIPTION = """\
glass: an OpenAI-compatible LLM server with per-request FFN sparsity.

Typical first use:
  glass pull smollm2-135m      download and prepare the default model
  glass serve smollm2-135m     serve it on http://127.0.0.1:8000
"""


class Command(Protocol):
    """What a module in `offline/commands` exports."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def load_commands() -> dict[str, Command]:
    """All subcommands by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    return {name: cast(Command, importlib.import_module(f"{commands.__name__}.{name}")) for name in names}


def build_parser(available: dict[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glass", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"glass {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in available.items():
        subparser = subparsers.add_parser(
            name,
            help=command.HELP,
            description=(command.__doc__ or command.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 after an error of ours, 130 after Ctrl-C; argparse exits with 2."""
    available = load_commands()
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(available).parse_args(words)
    args.command_line = shlex.join(["glass", *words])  # goes into the results of the measuring commands
    try:
        return available[args.command].run(args)
    except GlassError as error:
        print(f"glass {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
