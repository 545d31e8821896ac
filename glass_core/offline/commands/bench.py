"""Measure speed on this machine.

decode   tokens per second, bytes read per token and GB/s, for a sweep of sparsities
"""

import argparse
from pathlib import Path

from glass_core.config import EngineConfig, resolve_model

HELP = "measure speed: decode tokens/s, bytes per token, GB/s"
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_DECODE = """\
Every sparsity's sequences are prefilled once, then each repeat times all sparsities in turn, so that their ratios hold
even where the machine's speed drifts. Bytes per token are those of the weights and cached keys and values that one
decode step must read; GB/s is their product with tokens/s.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    _add_decode(
        benchmarks.add_parser(
            "decode",
            help="decode speed for a sweep of sparsities",
            description=_DECODE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument("--sparsities", default="0,0.5", help="comma-separated (default: 0,0.5)")
    parser.add_argument("--method", default="griffin", help="selection method; speed does not depend on it")
    parser.add_argument("--num-tokens", type=int, default=64, help="decode steps per timing (default: 64)")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="random prompt tokens (default: 32)")
    parser.add_argument("--batch-size", type=int, default=1, help="sequences decoded together (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="timings per sparsity (default: 5)")
    parser.add_argument("--dtype", choices=tuple(_DTYPE_BYTES), default="float32")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--runner", default="torch_runner", help="compute runner (default: torch_runner)")
    parser.add_argument("--threads", type=int, help="compute threads (default: the runner's own choice)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompt tokens (default: 0)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result as JSON")


def run(args: argparse.Namespace) -> int:
    return _run_decode(args)


def _run_decode(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.bench.decode import DecodeSettings
    from glass_core.offline.bench.report import print_table
    from glass_core.offline.bench.run import run_decode
    from glass_core.offline.flags import parse_floats
    from glass_core.offline.progress import ConsoleProgress
    from glass_core.offline.results import write_result

    settings = DecodeSettings(
        sparsities=parse_floats(args.sparsities, "--sparsities"),
        method=args.method,
        num_tokens=args.num_tokens,
        prompt_tokens=args.prompt_tokens,
        batch_size=args.batch_size,
        repeats=args.repeats,
        seed=args.seed,
        bytes_per_weight=_DTYPE_BYTES[args.dtype],
    )
    model_dir = resolve_model(args.model)
    config = EngineConfig(
        model_path=model_dir,
        model_name=model_dir.name,
        runner=args.runner,
        dtype=args.dtype,
        device=args.device,
        num_threads=args.threads,
    )
    result = run_decode(config, settings, ConsoleProgress())
    print_table(result, Console())
    if args.json is not None:
        write_result(args.json, result)
    return 0
