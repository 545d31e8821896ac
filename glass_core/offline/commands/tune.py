"""Learn refinement's thresholds per layer on text that the model writes itself, and add them to its artifact.

The thresholds of all layers move together at constant FFN reads, down the gradients of KL(dense || refined) on six
kinds of text at three sparsities, combined by ConicGrad. The table is written as profile `tuned` only when it beats
the measured one on text that was used for nothing else; the learning curves are written either way. A run that is
interrupted continues where it was when the same command is given again.
"""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.config import resolve_model

if TYPE_CHECKING:
    from glass_core.sparsity.artifact import GlobalStatistics

HELP = "learn refinement's thresholds per layer (profile `tuned`)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument(
        "--artifact", type=Path, metavar="PATH", help="the artifact to start from (default: the one that ships)"
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help="default: ./MODEL-tuned.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    parser.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.2, 0.35, 0.5], help="tuned at these (default: 0.2 0.35 0.5)"
    )
    parser.add_argument("--steps", type=int, default=36, help="at most (default: 36)")
    parser.add_argument("--learning-rate", type=float, default=0.03, help="of Adam (default: 0.03)")
    parser.add_argument(
        "--aggregator",
        choices=("conicgrad", "mean", "cagrad", "upgrad"),
        default="conicgrad",
        help="what combines the gradients (default: conicgrad)",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from glass_core.offline.progress import ConsoleProgress
    from glass_core.offline.results import write_result
    from glass_core.offline.tune.curves import plot_curves
    from glass_core.offline.tune.settings import TextSettings, TuningSettings
    from glass_core.offline.tune.tuning import TuningRun
    from glass_core.offline.tune.workfolder import TuningFolder
    from glass_core.runners.torch_runner.model import TorchModel
    from glass_core.sparsity.artifact import write_artifact
    from glass_core.text import load_text_processor

    settings = TuningSettings(
        text=TextSettings(seed=args.seed),
        sparsities=tuple(args.sparsities),
        aggregator=args.aggregator,
        num_steps=args.steps,
        learning_rate=args.learning_rate,
    )
    model_dir = resolve_model(args.model)
    model = TorchModel.load(model_dir, dtype=torch.float32, device="cpu")
    statistics, digest = _read(args.artifact, model.fingerprint)
    run_ = TuningRun(model, load_text_processor(model_dir), model_dir, statistics, settings, ConsoleProgress())
    folder = TuningFolder(settings.key(model.fingerprint, digest))
    outcome = run_.execute(folder)
    output: Path = args.output or Path(f"{model_dir.name}-tuned.safetensors")
    result = outcome.to_json_object(settings) | {"command": settings.command(model_dir.name)}
    write_result(output.with_suffix(".json"), result)
    plot_curves(result, output.with_suffix(".png"))
    print(_summary(result))
    if not outcome.wins:
        print("the tuned table does not beat the default on held-out text: no artifact is written")
        return 1
    write_artifact(output, run_.tuned_statistics(outcome.offsets, folder, settings.command(model_dir.name)))
    folder.remove()
    print(f"{output}: {output.stat().st_size:,} bytes")
    return 0


def _read(path: Path | None, fingerprint: str) -> "tuple[GlobalStatistics, str]":
    """The artifact to start from, and a digest of its file. Raises ConfigurationError when none is known."""
    from glass_core.errors import ConfigurationError
    from glass_core.sparsity.artifact import check_fingerprint, read_artifact, shipped_artifact

    found = shipped_artifact(fingerprint) if path is None else path
    if found is None:
        raise ConfigurationError("no artifact ships for this model: run `glass calibrate` and give --artifact")
    statistics = read_artifact(found)
    check_fingerprint(statistics, fingerprint)
    return statistics, hashlib.sha256(found.read_bytes()).hexdigest()


def _summary(result: dict[str, Any]) -> str:
    decided = result["deciding"]
    lines = ["sparsity  KL default  KL tuned   (held-out text, equal FFN reads, nats per token)"]
    for sparsity, default, tuned in zip(result["sparsities"], decided["default_kl"], decided["tuned_kl"], strict=True):
        lines.append(f"{sparsity:8.2f}  {default:10.4f}  {tuned:8.4f}")
    return "\n".join(lines)
