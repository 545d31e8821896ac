"""Show what is in a global-statistics artifact.

Prints the manifest and, per layer, how concentrated importance is, how sensitive the layer is, and how far two rankings
agree: activation against impact, or, with --prompt and --model, a prompt's own neurons against the artifact's.
"""

import argparse
from pathlib import Path

from glass_core.config import resolve_model
from glass_core.errors import ConfigurationError

HELP = "show and plot an artifact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="a file written by `glass calibrate`")
    parser.add_argument("--png", type=Path, metavar="OUT", help="plot it")
    parser.add_argument("--prompt", metavar="TEXT", help="compare this prompt's neurons with the artifact's")
    parser.add_argument("--model", metavar="MODEL", help="a pulled model's name or a model folder; with --prompt")
    parser.add_argument("--runner", default="torch_runner", help="compute runner; with --prompt")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.inspection.comparison import compare_prompt, compare_statistics, prompt_statistics
    from glass_core.offline.inspection.report import print_report
    from glass_core.sparsity.artifact import read_artifact
    from glass_core.text import load_text_processor

    if (args.prompt is None) != (args.model is None):
        raise ConfigurationError("--prompt and --model belong together: expected both or neither")
    statistics = read_artifact(args.artifact)
    comparison = compare_statistics(statistics)
    if args.prompt is not None:
        model_dir = resolve_model(args.model)
        text = load_text_processor(model_dir)
        token_ids = text.encode(text.render_chat([{"role": "user", "content": args.prompt}]))
        local = prompt_statistics(model_dir, args.runner, token_ids, statistics)
        comparison = compare_prompt(statistics, local)
    print_report(statistics, comparison, Console())
    if args.png is not None:
        from glass_core.offline.inspection.plots import plot_artifact

        plot_artifact(statistics, comparison, args.png)
        print(f"plot: {args.png}")
    return 0
