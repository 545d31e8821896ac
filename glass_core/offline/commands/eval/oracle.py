"""How many of the neurons an answer needs are chosen before it, layer by layer.

The dense model answers every prompt. The oracle's set of a layer are the best neurons by the answer's own statistic.
Reported per layer and on average: the Jaccard index of each condition's set with it (of answers, then of their mean),
and the mean Jaccard index of the set in use with each token's own best neurons by |z|, as many. The method `oracle`
shows what a fixed set can reach there. `griffin` is the prompt alone, `global_only` the corpus alone, `a_glass` both
fused. `refined` (--refine on; a profile with thresholds, such as `sensitivity`) has a set per token, the neurons whose
down_proj row it reads; compared with the oracle's are those that most tokens keep, as many as the oracle's.
"""

import argparse

from glass_core.offline.commands.eval.flags import (
    add_model,
    add_output,
    add_sweep,
    finish,
    longform_run,
    read_instructions,
)

HELP = "chosen neurons against those the answer needs, per layer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_sweep(parser, methods="griffin,global_only,a_glass,oracle")
    add_output(parser, "both indices against the layer")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.evaluate.oracle_report import plot_overlap, print_overlap
    from glass_core.offline.evaluate.oracle_run import OracleRun

    instructions = read_instructions(args)
    evaluation = OracleRun(longform_run(args))
    result = {
        "conditions": evaluation.conditions(args.prompts.name, args.command_line),
        **evaluation.execute(instructions),
    }
    print_overlap(result, Console())
    return finish(args, result, plot_overlap)
