"""Decode speed for a sweep of sparsities.

Every sparsity's sequences are prefilled once, then each repeat times all sparsities in turn, so that their ratios hold
even where the machine's speed drifts. Bytes per token are those of the weights and cached keys and values that one
decode step must read; GB/s is their product with tokens/s. The limit is how fast this machine reads so many bytes and
does nothing else, measured in turn with the decoding. --quality adds KL(fp32 || ours) per token at every sparsity.

--refine adds refined answers (thresholds of the artifact, adjusted token by token as in the server), in turn with the
static and with dense ones: what they read is what they did read, and "bytes" is the ratio to dense that this allows.
"""

import argparse
from typing import TYPE_CHECKING, Any

from glass_core.errors import ConfigurationError
from glass_core.offline.commands.bench.flags import add_common, add_engine, add_model, finish, session_of

if TYPE_CHECKING:
    from glass_core.offline.bench.decode import DecodeSettings
    from glass_core.offline.bench.session import Session

HELP = "decode speed for a sweep of sparsities"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--sparsities", default="0,0.5", help="comma-separated (default: 0,0.5)")
    parser.add_argument("--method", default="griffin", help="selection method; speed does not depend on it")
    parser.add_argument("--num-tokens", type=int, default=64, help="decode steps per timing (default: 64)")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="random prompt tokens (default: 32)")
    parser.add_argument("--batch-size", type=int, default=1, help="sequences decoded together (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="timings per sparsity (default: 5)")
    parser.add_argument("--refine", action="store_true", help="also refined answers, and dense ones first")
    parser.add_argument("--quality", action="store_true", help="measure the KL to fp32 of static sparsities (native)")
    parser.add_argument("--quality-tokens", type=int, default=320, help="answer tokens scored (default: 320)")
    add_engine(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.bench.decode import DecodeSettings, run_decode
    from glass_core.offline.bench.report import print_decode
    from glass_core.offline.flags import parse_floats
    from glass_core.offline.progress import ConsoleProgress

    if args.quality and args.random is not None:
        raise ConfigurationError("--quality needs a model that means something, not --random")
    settings = DecodeSettings(
        sparsities=parse_floats(args.sparsities, "--sparsities"),
        method=args.method,
        num_tokens=args.num_tokens,
        prompt_tokens=args.prompt_tokens,
        batch_size=args.batch_size,
        repeats=args.repeats,
        seed=args.seed,
        refine=args.refine,
    )
    num_sequences = len(settings.subjects) * settings.batch_size
    with session_of(args, num_sequences=num_sequences, num_tokens=settings.max_sequence_tokens) as session:
        result = run_decode(session, settings, ConsoleProgress(), args.command_line)
        if args.quality:
            _add_quality(args, session, settings, result)
    print_decode(result, Console())
    return finish(args, result)


def _add_quality(
    args: argparse.Namespace, session: "Session", settings: "DecodeSettings", result: dict[str, Any]
) -> None:
    """Put the KL and the share of equal best tokens into the rows of static plans."""
    from glass_core.offline.bench.quality import QualitySettings, measure_quality
    from glass_core.offline.progress import ConsoleProgress

    static = [row for row in result["rows"] if not row["refine"]]
    sparsities = tuple(row["sparsity"] for row in static)
    asked = QualitySettings(sparsities, settings.method, num_tokens=args.quality_tokens, seed=args.seed)
    for row, quality in zip(static, measure_quality(session, asked, ConsoleProgress()), strict=True):
        row["kl"], row["agreement"] = quality["kl"], quality["agreement"]
