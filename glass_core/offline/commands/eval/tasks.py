"""Accuracy on multiple-choice tasks from local files.

A task file has one JSON object per line: `context`, `choices` (texts appended to it as they stand), `answer` (the index
of the right one). The choice of the highest likelihood counts; `accuracy_norm` divides by the choice's bytes. As in the
server the context runs densely, and with it the first token of a choice: choices of one token score alike at every
sparsity. Intervals are 95 % bootstrap over the questions. EleutherAI's harness runs in process on the same model by
`glass_core.offline.evaluate.lm_eval_model`, where it is installed.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.config import resolve_model
from glass_core.errors import ConfigurationError
from glass_core.offline.commands.eval.flags import artifact_of, sweep_of

if TYPE_CHECKING:
    from glass_core.offline.evaluate.choices import Question

HELP = "accuracy on multiple-choice tasks from local files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument("--tasks", type=Path, required=True, nargs="+", metavar="FILE.jsonl")
    parser.add_argument("--methods", default="dense,griffin,a_glass", help="default: dense,griffin,a_glass")
    parser.add_argument("--sparsities", default="0.3,0.5", help="comma-separated (default: 0.3,0.5)")
    parser.add_argument("--lambdas", default="0.5", help="for methods that fuse (default: 0.5)")
    parser.add_argument("--profiles", default="uniform", help="budget profiles (default: uniform)")
    parser.add_argument("--artifact", type=Path, help="global statistics (default: those shipped for the model)")
    parser.add_argument("--limit", type=int, help="use the first N questions of each file")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals and of `random` (default: 0)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result as JSON")
    parser.set_defaults(refine="off")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from glass_core.offline.evaluate.choices import read_questions
    from glass_core.offline.evaluate.report import label_of, with_interval
    from glass_core.offline.results import write_result

    if args.limit is not None and args.limit < 1:
        raise ConfigurationError(f"limit must be at least 1, got {args.limit}")
    tasks = {path.stem: read_questions(path, limit=args.limit) for path in args.tasks}
    result = _measure(args, tasks)
    table = Table("task", "condition", "accuracy", "per byte")
    for row in result["rows"]:
        figures = (with_interval(row, name, "{:.1%}") for name in ("accuracy", "accuracy_norm"))
        table.add_row(row["task"], f"{label_of(row)} at {row['sparsity']:g}", *figures)
    Console().print(table)
    if args.json is not None:
        write_result(args.json, result)
    return 0


def _measure(args: argparse.Namespace, tasks: "dict[str, list[Question]]") -> dict[str, Any]:
    import torch

    from glass_core.offline.evaluate.choices import accuracy
    from glass_core.offline.evaluate.conditions import condition_json
    from glass_core.offline.evaluate.subjects import model_selector
    from glass_core.offline.evaluate.task_scoring import TaskModel
    from glass_core.offline.provenance import surroundings
    from glass_core.runners.torch_runner.model import TorchModel
    from glass_core.text import load_text_processor

    sweep = sweep_of(args)
    model_dir = resolve_model(args.model)
    model, text = TorchModel.load(model_dir, dtype=torch.float32, device=args.device), load_text_processor(model_dir)
    artifact = artifact_of(args, model_dir, model.fingerprint)
    selector = model_selector(model, None if artifact is None else artifact[0])
    rows = []
    for params in sweep.conditions(selector):
        condition = condition_json(params, selector.effective_lambda(params))
        scored = TaskModel(model, text, selector, params)
        rows += [
            {"task": name, **condition, **accuracy(scored, questions, args.seed)} for name, questions in tasks.items()
        ]
    settings = {"model": model_dir.name, "dtype": "float32", "seed": args.seed, "limit": args.limit}
    return {"conditions": {**settings, **surroundings(args.command_line)}, "rows": rows}
