"""The `glass` command: finds the subcommands in `offline/commands`, parses, runs, reports errors in one line."""

import argparse
import importlib
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from typing import cast

from glass_core import __version__
from glass_core.errors import GlassError
from glass_core.offline import commands
from glass_core.offline.subcommands import Command, add_commands

DESCRIPTION = """\
glass: an OpenAI-compatible LLM server with per-request FFN sparsity.

Typical first use:
  glass pull smollm2-135m      download and prepare the default model
  glass serve smollm2-135m     serve it on http://127.0.0.1:8000
"""


def load_commands(words: Sequence[str] = ()) -> dict[str, Command]:
    """The subcommand that the words ask for, or all by name: `glass serve` need not wait for what others import."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    if words and words[0] in names:
        names = [words[0]]
    return {name: cast(Command, importlib.import_module(f"{commands.__name__}.{name}")) for name in names}


def build_parser(available: dict[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glass", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"glass {__version__}")
    add_commands(parser, available, dest="command", metavar="COMMAND")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 after an error of ours, 130 after Ctrl-C; argparse exits with 2."""
    words = sys.argv[1:] if argv is None else argv
    available = load_commands(words)
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
