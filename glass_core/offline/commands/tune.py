"""Learn refinement's scores and thresholds, and static budgets and lambdas, on text that the model writes itself.

Refinement: every neuron and every input of an FFN gets its weight, the root-mean-square of the loss's derivative with
respect to it; then the thresholds of all layers and both stages move together at constant FFN reads. Static pruning:
every layer's share of it and its lambda move at constant sparsity. Both go down the gradients of KL(dense || sparse)
on six kinds of text at three sparsities, combined by ConicGrad. Either half goes into profile `tuned` only where it
beats the measured one beyond noise on text that was used for nothing else; the learning curves are written even where
neither does. A run that is interrupted continues where it was when the same command is given again.
"""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.config import resolve_model

if TYPE_CHECKING:
    from glass_core.sparsity.artifact import GlobalStatistics

HELP = "learn refinement's scores and thresholds, and static budgets and lambdas (profile `tuned`)"


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
    parser.add_argument("--steps", type=int, default=2, help="of refinement, at most (default: 2)")
    parser.add_argument("--static-steps", type=int, default=30, help="of static pruning, at most (default: 30)")
    parser.add_argument("--rate", type=float, default=0.3, help="share of a Newton step in refinement (default: 0.3)")
    parser.add_argument(
        "--aggregator",
        choices=("conicgrad", "mean", "cagrad", "upgrad"),
        default="conicgrad",
        help="what combines the gradients (default: conicgrad)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the computation; float32 where the processor has no bfloat16 instructions (default: bfloat16)",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from glass_core.offline.progress import ConsoleProgress
    from glass_core.offline.results import write_result
    from glass_core.offline.tune.curves import plot_curves
    from glass_core.offline.tune.settings import TextSettings, TuningSettings
    from glass_core.offline.tune.static_settings import StaticSettings
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
        rate=args.rate,
        static=StaticSettings(num_steps=args.static_steps),
    )
    model_dir = resolve_model(args.model)
    model = TorchModel.load(model_dir, dtype=getattr(torch, args.dtype), device="cpu")
    statistics, digest = _read(args.artifact, model.fingerprint)
    run_ = TuningRun(model, load_text_processor(model_dir), model_dir, statistics, settings, ConsoleProgress())
    folder = TuningFolder(settings.key(model.fingerprint, digest, args.dtype))
    outcome = run_.execute(folder)
    output: Path = args.output or Path(f"{model_dir.name}-tuned.safetensors")
    command = f"{settings.command(model_dir.name)} --dtype {args.dtype}"
    result = outcome.to_json_object(settings) | {"command": command}
    write_result(output.with_suffix(".json"), result)
    plot_curves(result, output.with_suffix(".png"))
    print(_summary(result))
    if not outcome.wins:
        print("neither half beats the measured one beyond noise on held-out text: no artifact is written")
        return 1
    write_artifact(output, run_.tuned_statistics(outcome, folder, command))
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
    head = "sparsity  KL default  KL tuned  log ratio (95 %)   (held-out text, equal sparsity, nats per token)"
    halves = (("refined", result), ("static, a_glass", result["static"]))
    return "\n".join([head, *(line for name, half in halves for line in _half(name, half))])


def _half(name: str, result: dict[str, Any]) -> list[str]:
    decided = result["deciding"]
    *gains, mean = decided["gains"]
    rows = zip(result["sparsities"], decided["default_kl"], decided["tuned_kl"], gains, strict=True)
    lines = [
        f"{sparsity:8.2f}  {default:10.4f}  {tuned:8.4f}  {_interval(gain)}" for sparsity, default, tuned, gain in rows
    ]
    kept = "kept" if decided["tuned_wins"] else "dropped: not beyond noise"
    return [f"{name} ({kept})", *lines, f"    mean                        {_interval(mean)}"]


def _interval(gain: dict[str, float]) -> str:
    return f"{gain['log_kl_ratio']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
