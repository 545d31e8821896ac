"""Make the weight image the native runner serves from, out of a pulled model or a Hugging Face folder.

int4 and int8 store groups of 32 weights with a scale (int4: and a minimum), bf16 rounds to bfloat16. Weights that came
from a GGUF file's Q4_0, Q4_1 or Q8_0 blocks are recovered without any loss; otherwise the nearest codes are taken, and
the command says so. `glass pull` makes the default image; this makes another one, or the first for a folder that has
none.
"""

import argparse

from glass_core.config import resolve_model
from glass_core.errors import ModelError

HELP = "make a weight image for the native runner"
_FORMATS = ("int4", "int8", "bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument("--format", choices=_FORMATS, help="default: int4 for weights that came with 4 bits, else int8")


def run(args: argparse.Namespace) -> int:
    from glass_core.offline.quantization import quantize_model

    try:
        header = quantize_model(resolve_model(args.model), args.format)
    except OSError as error:
        raise ModelError(f"cannot quantize {args.model}: {error}") from error
    size = header.path.stat().st_size / (1 << 20)
    print(f"{header.path}: {size:.1f} MiB, {'exactly the checkpoint' if header.exact else 'not exact'}")
    for note in header.notes:
        print(f"  {note}")
    return 0
