"""Prompt speed at several lengths.

Prompts run as in the server: densely, in chunks, with the neurons' statistics collected. Beside each length: the time
to choose neurons at --sparsity and to build the first step's weight views, and its share of the time to first token.
"""

import argparse

from glass_core.offline.commands.bench.flags import add_common, add_engine, add_model, finish, session_of

HELP = "prompt tokens per second at several lengths"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--prompt-tokens", default="32,128,512", help="comma-separated (default: 32,128,512)")
    parser.add_argument("--chunk-tokens", type=int, default=512, help="tokens of one step (default: 512)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="of the selection that is timed (default: 0.5)")
    parser.add_argument("--method", default="griffin", help="of the selection that is timed (default: griffin)")
    parser.add_argument("--repeats", type=int, default=5, help="timings per length (default: 5)")
    add_engine(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.bench.prefill import PrefillSettings, run_prefill
    from glass_core.offline.bench.report import print_prefill
    from glass_core.offline.flags import parse_counts
    from glass_core.offline.progress import ConsoleProgress

    settings = PrefillSettings(
        prompt_tokens=parse_counts(args.prompt_tokens, "--prompt-tokens"),
        chunk_tokens=args.chunk_tokens,
        sparsity=args.sparsity,
        method=args.method,
        repeats=args.repeats,
        seed=args.seed,
    )
    with session_of(args, num_sequences=1, num_tokens=settings.max_sequence_tokens) as session:
        result = run_prefill(session, settings, ConsoleProgress(), args.command_line)
    print_prefill(result, Console())
    return finish(args, result)
