"""Quality against decoding speed, with llama.cpp's quantizations as rivals: sparsity competes with smaller files.

The float32 model answers the prompts, about --quality-tokens tokens in all. On these answers every point is
teacher-forced: the native runner in every --dtype, at every sparsity (0 = dense) by the static --methods, and refined
where the runner and the artifact can; llama.cpp through its server. Then all points decode in turns, batch 1, greedy,
from one of the prompts; the reported speed is the median of the repeats, and repeats that other processes disturbed
are measured again. `speedup` is over the fastest rival of equal or worse KL, the median of the repeats' own ratios.

llama-server is needed for the rivals' quality; the one beside --llama-bench is taken unless --llama-server names one.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.errors import ConfigurationError
from glass_core.offline.commands.eval.flags import (
    NATIVE,
    add_model,
    add_output,
    finish,
    longform_run,
    read_instructions,
)

if TYPE_CHECKING:
    from glass_core.offline.bench.llama_cpp import LlamaBench
    from glass_core.offline.evaluate.evaluation import LongformRun

HELP = "quality against measured speed, beside llama.cpp's quantizations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--dtype", default="int4", help="native formats, comma-separated (default: int4)")
    parser.add_argument("--methods", default="a_glass", help="static methods, comma-separated (default: a_glass)")
    parser.add_argument("--sparsities", default="0,0.2,0.3,0.4,0.5", help="default: 0,0.2,0.3,0.4,0.5")
    parser.add_argument("--profiles", default="sensitivity", help="budget profiles (default: sensitivity)")
    parser.add_argument("--quality-tokens", type=int, default=640, help="answer tokens scored, about (default: 640)")
    parser.add_argument("--num-tokens", type=int, default=64, help="tokens decoded per timing (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="timings per point (default: 5)")
    parser.add_argument("--max-others-share", type=float, default=0.1, metavar="SHARE", help="default: 0.1")
    parser.add_argument("--threads", type=int, help="compute threads of all sides (default: all processors)")
    parser.add_argument("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's benchmark program")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's server")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], metavar="FILE", help="its models")
    add_output(parser, "KL against tokens per second")
    parser.set_defaults(runner=NATIVE, refine="off", lambdas=None)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.frontier.report import plot_frontier, print_frontier

    peers, server = _peers(args)
    instructions = read_instructions(args)
    args.max_new_tokens = str(max(2, -(-args.quality_tokens // len(instructions)) + 1))
    result = _measure(args, longform_run(args), instructions, peers, server)
    print_frontier(result, Console())
    return finish(args, result, plot_frontier)


def _measure(
    args: argparse.Namespace,
    longform: "LongformRun",
    instructions: list[str],
    peers: "list[LlamaBench]",
    server: Path | None,
) -> dict[str, Any]:
    from glass_core.config import EngineConfig, resolve_model
    from glass_core.offline.bench.disturbance import QuietRepeats
    from glass_core.offline.frontier.points import Point, compared
    from glass_core.offline.frontier.quality import score_points
    from glass_core.offline.frontier.speed import SpeedSettings, measure_speeds

    answers = longform.answers_to(instructions)
    settings = SpeedSettings(answers[0].prompt, args.num_tokens, args.repeats)
    quiet = QuietRepeats(args.max_others_share)
    conditions = {
        **longform.conditions(args.prompts.name, args.command_line),
        "protocol": "frontier: long-form quality against decoding speed, all points taking turns",
        "prompt_tokens": len(settings.prompt),
        "num_tokens": settings.num_tokens,
        "repeats": settings.repeats,
        "threads": args.threads,
        "peers": [peer.description() for peer in peers],
    }
    scored = score_points(longform, answers, peers, server)
    points: list[Point] = [*scored.own, *scored.rivals]
    folder = resolve_model(args.model)
    config = EngineConfig(
        folder, longform.model_name, artifact_path=args.artifact, runner=NATIVE, num_threads=args.threads
    )
    measure_speeds(config, points, settings, quiet, longform.progress)
    return {
        "conditions": conditions,
        "disturbance": quiet.as_json(),
        "refinement_problem": scored.refinement_problem,
        "points": compared(points),
    }


def _peers(args: argparse.Namespace) -> "tuple[list[LlamaBench], Path | None]":
    """The rivals and the server that scores them. Raises ConfigurationError for what is not there."""
    from glass_core.offline.bench.llama_cpp import LlamaBench
    from glass_core.runners.native.processor import num_cores

    if not args.gguf:
        return [], None
    if args.llama_bench is None:
        raise ConfigurationError("--gguf needs --llama-bench, llama.cpp's benchmark program")
    server = args.llama_server or args.llama_bench.with_name("llama-server")
    for path in (args.llama_bench, server, *args.gguf):
        if not path.is_file():
            raise ConfigurationError(f"no such file: {path}")
    return [LlamaBench(args.llama_bench, path, args.threads or num_cores()) for path in args.gguf], server
