"""Measure quality: how far sparse answers are from the dense model's.

longform  answers of the dense model, teacher-forced under every method, sparsity and lambda; prompt and answer lengths
compare   conditions of such results against a baseline, answer by answer
oracle    how many of the neurons an answer needs are chosen before it, layer by layer
tasks     accuracy on multiple-choice tasks from local files
frontier  quality against decoding speed, with llama.cpp's quantizations as rivals
"""

import argparse

from glass_core.offline.commands.eval import compare, frontier, longform, oracle, tasks
from glass_core.offline.subcommands import Command, add_commands

HELP = "measure quality: perplexity and KL of sparse against dense"
_PROTOCOLS: dict[str, Command] = {
    "longform": longform,
    "compare": compare,
    "oracle": oracle,
    "tasks": tasks,
    "frontier": frontier,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, _PROTOCOLS, dest="protocol", metavar="PROTOCOL")


def run(args: argparse.Namespace) -> int:
    return _PROTOCOLS[args.protocol].run(args)
