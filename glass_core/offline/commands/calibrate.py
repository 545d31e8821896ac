"""Measure a model's neurons on a corpus and write the global-statistics artifact.

The corpus is text the model writes itself (--source null or chat), or a text file. A run that is interrupted
continues where it was when the same command is given again; equal settings give equal artifacts on one machine.
"""

import argparse
from pathlib import Path

from glass_core.config import resolve_model
from glass_core.errors import ConfigurationError
from glass_core.sparsity.artifact import shipped_artifact

HELP = "measure a model's global statistics (the artifact)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument(
        "--source",
        default="null",
        metavar="null|chat|FILE",
        help="null: the model writes from BOS alone; chat: it writes a user message and its own answer under the chat "
        "template; FILE: a text file (default: null)",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE|NAME",
        help="write chats under this template in place of the model's own: a Jinja file, or the name of one of the "
        "checkpoint's. Gives a base model chats, such as questions and answers (default: the model's own)",
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help="default: ./MODEL-SOURCE.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (default: 0)")
    parser.add_argument("--num-sequences", type=int, default=24, help="sequences measured (default: 24)")
    parser.add_argument("--sequence-length", type=int, default=192, help="tokens per sequence (default: 192)")
    parser.add_argument(
        "--num-held-out", type=int, default=4, help="further sequences for the layer sensitivities (default: 4)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument(
        "--only",
        choices=("expected-kl",),
        help="measure this alone, for an artifact that exists: what sparse answers lose on held-out text",
    )
    parser.add_argument(
        "--artifact", type=Path, metavar="PATH", help="the artifact --only adds to (default: the one shipped)"
    )


def run(args: argparse.Namespace) -> int:
    if args.artifact is not None and args.only is None:
        raise ConfigurationError("--artifact is what --only adds to: give both or neither")
    from glass_core.offline.calibrate.calibration import CalibrationRun, load_model
    from glass_core.offline.calibrate.settings import CalibrationSettings
    from glass_core.offline.progress import ConsoleProgress
    from glass_core.text import load_text_processor

    settings = CalibrationSettings(
        source=args.source,
        seed=args.seed,
        num_sequences=args.num_sequences,
        sequence_length=args.sequence_length,
        num_held_out=args.num_held_out,
        chat_template=args.chat_template,
    )
    model_dir = resolve_model(args.model)
    name = model_dir.name
    output: Path = args.output or Path(f"{name}-{Path(settings.source_name).stem}.safetensors")
    text = load_text_processor(model_dir, settings.chat_template)
    model = load_model(model_dir, args.device)
    calibration = CalibrationRun(model, text, model_dir, name, settings, ConsoleProgress())
    if args.only is None:
        statistics = calibration.execute(output)
    else:
        statistics = calibration.add_expected_kl(_artifact(args.artifact, calibration.model.fingerprint), output)
    corpus = statistics.manifest.corpus
    print(f"{output}: {output.stat().st_size:,} bytes, {corpus['num_tokens']} tokens of source {corpus['source']}")
    return 0


def _artifact(given: Path | None, fingerprint: str) -> Path:
    """The artifact that was named, else the shipped one. Raises ConfigurationError when none ships."""
    found = given or shipped_artifact(fingerprint)
    if found is None:
        raise ConfigurationError("no artifact ships for this model: name one with --artifact")
    return found
