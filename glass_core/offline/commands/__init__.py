"""One file per `glass` subcommand; the file name is the command's name.

A command module has `HELP` (one line), `add_arguments(parser)` and `run(args) -> int`. Heavy imports (torch,
transformers, matplotlib) belong inside `run`, so that `glass --help` answers at once.
"""
