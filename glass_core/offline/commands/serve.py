"""Serve a model over OpenAI's API.

Replaces this process by `python -m server` with the same arguments; `glass serve --help` shows its flags.
"""

import argparse
import os
import sys

HELP = "serve a model over OpenAI's API"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="model and flags of the server")
    # Flags are defined once, by the server. With no character that begins an option of this parser, all of them,
    # `--help` too, are collected as plain arguments.
    parser.prefix_chars = "\0"


def run(args: argparse.Namespace) -> int:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "server", *args.arguments])  # noqa: S606  our own interpreter
    return 0  # not reached: this process is the server now
