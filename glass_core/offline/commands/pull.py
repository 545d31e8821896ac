"""Download or convert a model into a prepared checkpoint.

NAME_OR_PATH is a known name (smollm2-135m; gemma3-270m, a base model under the Gemma Terms of Use), a local Hugging
Face folder with safetensors, or a .gguf file. Supported families: llama, mistral, qwen2, qwen3, gemma3_text. The result
lies in $GLASS_HOME/models (default: the user's cache folder) and is served by its name. A second pull of the same model
returns at once.
"""

import argparse

from glass_core.config import DEFAULT_MODEL
from glass_core.errors import ModelError

HELP = "download a known model, or prepare a local folder or .gguf file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME_OR_PATH", nargs="?", default=DEFAULT_MODEL, help="default: %(default)s")
    parser.add_argument("--name", help="name to serve it under (default: made from the name or path)")
    parser.add_argument("--force", action="store_true", help="replace a model of that name")


def run(args: argparse.Namespace) -> int:
    from glass_core.offline.pull.puller import pull

    try:
        folder = pull(args.model, name=args.name, force=args.force)
    except OSError as error:
        raise ModelError(f"cannot prepare {args.model}: {error}") from error
    print(f"{folder.name} is ready in {folder}\nnext: glass serve {folder.name}")
    return 0
