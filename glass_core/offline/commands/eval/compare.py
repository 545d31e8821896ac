"""Long-form results compared answer by answer.

Every condition of the files against a baseline in the first one: the method --to at the same sparsity, or without it
the same condition (of another artifact, say). Given are relative changes of KL and perplexity with 95 % bootstrap
intervals over answers that are drawn with both of their scores: far narrower than the intervals of the two. The files
need the same answers: run `glass eval longform` with one --answers file.
"""

import argparse
from pathlib import Path

HELP = "conditions of long-form results against a baseline, answer by answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json", help="of `glass eval longform --json`")
    parser.add_argument("--to", metavar="METHOD", help="the baseline (default: the same condition in the first file)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.evaluate.paired import compare, print_comparison, read_results
    from glass_core.offline.results import write_result

    names = [path.name for path in args.results]
    rows = compare(read_results(args.results), names, args.to)
    print_comparison(rows, args.to, Console())
    if args.json is not None:
        write_result(args.json, {"command": args.command_line, "rows": rows})
    return 0
