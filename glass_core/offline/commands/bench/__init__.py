"""Measure speed on this machine.

decode   tokens per second, bytes read per token and GB/s, for a sweep of sparsities
prefill  prompt tokens per second at several lengths, and what choosing neurons adds to the first token
serving  latency, throughput and goodput of a server over HTTP, under closed-loop and open-loop load
compare  ratios to llama.cpp, both sides taking turns in one run
"""

import argparse

from glass_core.offline.commands.bench import compare, decode, prefill, serving

HELP = "measure speed: decode, prefill, serving, compare with llama.cpp"
_BENCHMARKS = {"decode": decode, "prefill": prefill, "serving": serving, "compare": compare}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, module in _BENCHMARKS.items():
        subparser = benchmarks.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or module.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)


def run(args: argparse.Namespace) -> int:
    status: int = _BENCHMARKS[args.benchmark].run(args)
    return status
