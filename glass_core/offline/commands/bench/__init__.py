"""Measure speed on this machine.

decode   tokens per second, bytes read per token and GB/s, for a sweep of sparsities
prefill  prompt tokens per second at several lengths, and what choosing neurons adds to the first token
serving  latency, throughput and goodput of a server over HTTP, under closed-loop and open-loop load
compare  ratios to llama.cpp, transformers and vLLM, both sides taking turns in one run
"""

import argparse

from glass_core.offline.commands.bench import compare, decode, prefill, serving
from glass_core.offline.subcommands import Command, add_commands

HELP = "measure speed: decode, prefill, serving, compare with other engines"
_BENCHMARKS: dict[str, Command] = {"decode": decode, "prefill": prefill, "serving": serving, "compare": compare}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, _BENCHMARKS, dest="benchmark", metavar="BENCHMARK")


def run(args: argparse.Namespace) -> int:
    return _BENCHMARKS[args.benchmark].run(args)
