"""Long answers, teacher-forced: what sparse decoding costs after a dense prompt.

The dense model answers every prompt (temperature 0.7, top-p 0.95). Then each condition, its neurons chosen from the
prompt alone, is teacher-forced on that answer with dense prompt KV. Reported per answer token: perplexity, mean
KL(dense || sparse), top-1 agreement, and the share of FFN weights read. `oracle` chooses from the answer's own
statistics: the bound for any plan that stays fixed during an answer. `refined` (--refine on) chooses for every token,
one token at a time with its thresholds adjusted as in the server. Every figure has a 95 % bootstrap interval over
the answers.

With --runner native the float32 torch model stays the reference, and every condition is measured on both: on the native
runner also the KL from the reference under the same condition.

A prompt file has one JSON object with an `instruction` per line. Skipped are entries whose first `instances` item has a
non-empty `input`, and instructions of --max-prompt-chars characters or more.

--prompt-tokens 8,32,128,512 repeats all of it for prompts of exactly so many tokens, sampling answers to these: a
prompt is the end of a conversation whose last turn is the instruction and whose earlier turns are the file's
instructions before it with the dense model's answers. Several --max-new-tokens report each span of the longest answers,
and all tokens up to each length, from one run.
"""

import argparse

from glass_core.offline.commands.eval.flags import (
    add_model,
    add_output,
    add_runner,
    add_sweep,
    finish,
    longform_run,
    read_instructions,
)

HELP = "teacher-forced long answers, at several prompt and answer lengths"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_sweep(parser, methods="griffin,a_glass,oracle")
    add_runner(parser)
    parser.add_argument(
        "--prompt-tokens", metavar="N[,N...]", help="also evaluate conversations cut to their last N tokens"
    )
    add_output(parser, "KL and perplexity against sparsity")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.evaluate.report import plot_curves, print_table
    from glass_core.offline.evaluate.sweep_report import plot_sweeps, print_sweeps

    instructions = read_instructions(args)
    evaluation = longform_run(args)
    result = {
        "conditions": evaluation.conditions(args.prompts.name, args.command_line),
        **evaluation.execute(instructions),
    }
    print_table(result, Console())
    print_sweeps(result, Console())
    return finish(
        args, result, plot_curves, lambda result, path: plot_sweeps(result, path.with_stem(f"{path.stem}-lengths"))
    )
