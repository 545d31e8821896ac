"""Flags that the evaluations share, and the long-form run they make."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.config import AUTO, EngineConfig, resolve_model
from glass_core.errors import ConfigurationError

if TYPE_CHECKING:
    from glass_core.offline.evaluate.conditions import Sweep
    from glass_core.offline.evaluate.evaluation import LongformRun
    from glass_core.runners.native.image import ImageHeader
    from glass_core.sparsity.artifact import GlobalStatistics

TORCH, NATIVE = "torch_runner", "native"
_TORCH_DTYPES, _NATIVE_DTYPES = ("float32", "bfloat16"), ("int4", "int8", "bf16")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model and its answers."""
    parser.add_argument("model", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--artifact", type=Path, help="global statistics (default: those shipped for the model)")
    parser.add_argument("--limit", type=int, default=20, help="use the first N prompts (default: 20)")
    parser.add_argument("--max-prompt-chars", type=int, default=120, help="skip longer instructions (default: 120)")
    parser.add_argument(
        "--max-new-tokens",
        default="192",
        metavar="N[,N...]",
        help="length of the answers; of several, the largest is sampled; `longform` reports each (default: 192)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the answers and of `random` (default: 0)")
    parser.add_argument(
        "--answers", type=Path, metavar="FILE.json", help="take the answers from this file, or put them there for later"
    )
    # what only `longform` has flags for
    parser.set_defaults(runner=None, dtype=AUTO, threads=None, device="cpu", prompt_tokens=None)


def add_sweep(parser: argparse.ArgumentParser, *, methods: str) -> None:
    """The conditions."""
    parser.add_argument("--methods", default=methods, help=f"comma-separated (default: {methods})")
    parser.add_argument("--sparsities", default="0.3,0.5", help="comma-separated (default: 0.3,0.5)")
    parser.add_argument("--lambdas", default="0.5", help="comma-separated, for methods that fuse (default: 0.5)")
    parser.add_argument("--profiles", default="uniform", help="comma-separated budget profiles (default: uniform)")
    parser.add_argument(
        "--refine",
        default="off",
        metavar="off|on|off,on",
        help="on: token-level refinement per profile and sparsity, decoded token by token; --methods and --lambdas do "
        "not apply to it (default: off)",
    )


def add_runner(parser: argparse.ArgumentParser) -> None:
    """What is evaluated: the torch model, or the native runner against it."""
    parser.add_argument("--runner", choices=(TORCH, NATIVE), help="default: native for a --dtype of its own")
    parser.add_argument(
        "--dtype",
        default=AUTO,
        help="int4, int8, bf16 or several, separated by commas: native; float32, bfloat16: torch",
    )
    parser.add_argument("--threads", type=int, help="compute threads of the native runner (default: all processors)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")


def add_output(parser: argparse.ArgumentParser, plotted: str) -> None:
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result as JSON")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help=f"plot {plotted} (default: beside --json)")


def _plot_path(args: argparse.Namespace) -> Path | None:
    """Where the plot goes: --plot, else beside the JSON."""
    beside: Path | None = None if args.json is None else args.json.with_suffix(".png")
    return beside if args.plot is None else args.plot


def finish(
    args: argparse.Namespace, result: Mapping[str, Any], *plots: Callable[[Mapping[str, Any], Path], None]
) -> int:
    """Write the result and draw its plots where they were asked for."""
    from glass_core.offline.results import write_result

    if args.json is not None:
        write_result(args.json, result)
    path = _plot_path(args)
    if path is not None:
        for plot in plots:
            plot(result, path)
    return 0


def read_instructions(args: argparse.Namespace) -> list[str]:
    """Those of --prompts. Raises ConfigurationError for a file that cannot be read or has none."""
    from glass_core.offline.evaluate.prompts import read_prompts

    return read_prompts(args.prompts, limit=args.limit, max_chars=args.max_prompt_chars)


def longform_run(args: argparse.Namespace) -> "LongformRun":
    import torch

    from glass_core.offline.evaluate.evaluation import LongformRun
    from glass_core.offline.flags import parse_counts
    from glass_core.offline.progress import ConsoleProgress
    from glass_core.runners.torch_runner.model import TorchModel
    from glass_core.text import load_text_processor

    sweep = sweep_of(args)
    lengths = parse_counts(args.max_new_tokens, "--max-new-tokens")
    model_dir = resolve_model(args.model)
    formats = _native_formats(args)
    dtype = "float32" if formats or args.dtype == AUTO else args.dtype
    model = TorchModel.load(model_dir, dtype=getattr(torch, dtype), device=args.device)
    return LongformRun(
        model=model,
        model_name=model_dir.name,
        text=load_text_processor(model_dir),
        artifact=artifact_of(args, model_dir, model.fingerprint),
        sweep=sweep,
        max_new_tokens=max(lengths),
        seed=args.seed,
        progress=ConsoleProgress(),
        images=_images(model_dir, formats),
        num_threads=args.threads,
        answer_file=args.answers,
        answer_lengths=tuple(sorted(lengths)) if len(lengths) > 1 else (),
        prompt_lengths=() if args.prompt_tokens is None else parse_counts(args.prompt_tokens, "--prompt-tokens"),
    )


def sweep_of(args: argparse.Namespace) -> "Sweep":
    """The conditions that are asked for."""
    from glass_core.offline.evaluate.conditions import Sweep
    from glass_core.offline.flags import parse_floats, parse_names

    return Sweep(
        methods=parse_names(args.methods, "--methods"),
        sparsities=parse_floats(args.sparsities, "--sparsities"),
        lambdas=(None,) if args.lambdas is None else parse_floats(args.lambdas, "--lambdas"),
        profiles=parse_names(args.profiles, "--profiles"),
        seed=args.seed,
        refine=_refine_modes(args.refine),
    )


def artifact_of(args: argparse.Namespace, model_dir: Path, fingerprint: str) -> "tuple[GlobalStatistics, Path] | None":
    """That of --artifact, else the one shipped; None where none ships."""
    from glass_core.engine.loading import load_statistics

    config = EngineConfig(model_path=model_dir, model_name=model_dir.name, artifact_path=args.artifact)
    return load_statistics(config, fingerprint)


def _refine_modes(text: str) -> tuple[bool, ...]:
    """Raises ConfigurationError for anything but off, on or both."""
    from glass_core.offline.flags import parse_names

    names, known = parse_names(text, "--refine"), {"off": False, "on": True}
    if not set(names) <= known.keys():
        raise ConfigurationError(f"--refine must be off, on or off,on, got {text!r}")
    return tuple(known[name] for name in names)


def _native_formats(args: argparse.Namespace) -> tuple[str, ...]:
    """What the native runner is evaluated in, none when the torch model is.

    Raises ConfigurationError for dtypes that the runner does not have.
    """
    from glass_core.offline.flags import parse_names

    dtypes = parse_names(args.dtype, "--dtype")
    if args.runner is None and dtypes == (AUTO,):
        return ()
    runner = args.runner or (NATIVE if dtypes[0] in _NATIVE_DTYPES else TORCH)
    known = _NATIVE_DTYPES if runner == NATIVE else _TORCH_DTYPES
    if not set(dtypes) <= {AUTO, *known} or (runner == TORCH and len(dtypes) > 1):
        several = "one or several" if runner == NATIVE else "one"
        raise ConfigurationError(f"--dtype must be {several} of {', '.join(known)} for {runner}, got {args.dtype!r}")
    return dtypes if runner == NATIVE else ()


def _images(model_dir: Path, formats: tuple[str, ...]) -> "tuple[ImageHeader, ...]":
    """Raises ConfigurationError when the native runner cannot run here."""
    from glass_core.runners.native.checkpoint_image import open_or_make_image
    from glass_core.runners.native.extension import load_extension

    if formats:
        load_extension()
    return tuple(open_or_make_image(model_dir, name) for name in formats)
