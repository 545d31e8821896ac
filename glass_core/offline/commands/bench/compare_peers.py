"""The peers of `glass bench compare`: flags, files and processes."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.errors import ConfigurationError
from glass_core.offline.commands.bench.flags import engine_config, random_model_of

if TYPE_CHECKING:
    from glass_core.offline.bench.compare import CompareSettings
    from glass_core.offline.bench.llama_cpp import LlamaBench
    from glass_core.offline.bench.peers.process import ChildPeer
    from glass_core.offline.bench.serving import ServingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Each peer is optional; nothing is installed for any."""
    parser.add_argument("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's benchmark program")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="llama.cpp's server: compare over HTTP too")
    parser.add_argument("--gguf", type=Path, action="append", metavar="FILE", help="its model; may be repeated")
    parser.add_argument("--transformers", action="store_true", help="transformers, eager, in bfloat16")
    parser.add_argument(
        "--vllm-python", type=Path, metavar="PATH", help="Python of an environment with vLLM's CPU build: in bfloat16"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigurationError for peers that are missing or cannot be compared."""
    children = args.transformers or args.vllm_python is not None
    if args.llama_bench is None and not children:
        raise ConfigurationError("no peer: give --llama-bench with --gguf, --transformers or --vllm-python")
    if args.llama_bench is None and (args.llama_server is not None or args.gguf):
        raise ConfigurationError("--llama-server and --gguf need --llama-bench")
    if args.random is not None and (args.quality or args.llama_server is not None or children):
        raise ConfigurationError(
            "a --random model has no tokenizer, no Hugging Face folder and no meaning: no --quality, no "
            "--llama-server, no --transformers, no --vllm-python"
        )


def llama_peers(args: argparse.Namespace) -> list["LlamaBench"]:
    """One per GGUF file. A random model brings its own."""
    from glass_core.offline.bench.llama_cpp import LlamaBench
    from glass_core.runners.native.processor import num_cores

    if args.llama_bench is None:
        return []
    own = [] if args.random is None else [random_model_of(args).gguf]
    files = [*own, *(args.gguf or [])]
    if not files:
        raise ConfigurationError("--gguf FILE is needed: the peer's model")
    for path in (args.llama_bench, *files):
        if not path.is_file():
            raise ConfigurationError(f"no such file: {path}")
    return [LlamaBench(args.llama_bench, path, args.threads or num_cores()) for path in files]


@contextmanager
def child_peers(
    args: argparse.Namespace, settings: "CompareSettings", serving: "ServingSettings"
) -> Iterator[list["ChildPeer"]]:
    """The peers in processes of their own, loaded, on a copy of the checkpoint in bfloat16."""
    pythons = {} if not args.transformers else {"transformers": Path(sys.executable)}
    if args.vllm_python is not None:
        pythons["vllm"] = args.vllm_python.absolute()
    if not pythons:
        yield []
        return
    from glass_core.offline.bench.peers.bf16_folder import write_bf16_folder
    from glass_core.offline.bench.peers.process import ChildPeer, PeerCommand
    from glass_core.offline.bench.serving import SPARE_TOKENS
    from glass_core.runners.native.processor import num_cores

    threads = args.threads or num_cores()
    tokens = max(settings.max_sequence_tokens + SPARE_TOKENS, serving.max_sequence_tokens)
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="glass-bench-"))
        folder = write_bf16_folder(engine_config(args).model_path, Path(place))
        commands = (
            PeerCommand(side, python, folder, threads, tokens, serving.max_concurrency)
            for side, python in pythons.items()
        )
        yield [stack.enter_context(ChildPeer(command)) for command in commands]


def stream_rows(
    args: argparse.Namespace, peers: list["ChildPeer"], serving: "ServingSettings", result: dict[str, Any]
) -> None:
    """Add our server over HTTP against the peers' streams to a result."""
    from glass_core.offline.bench.compare_servers import our_server
    from glass_core.offline.bench.compare_streams import compare_streams
    from glass_core.offline.bench.disturbance import QuietRepeats
    from glass_core.offline.commands.bench.serving import server_flags
    from glass_core.offline.progress import ConsoleProgress
    from glass_core.runners.native.processor import num_cores
    from glass_core.text import load_text_processor

    model = engine_config(args).model_path
    quiet = QuietRepeats(args.max_others_share)
    threads, slots = args.threads or num_cores(), serving.max_concurrency
    with our_server(str(model), server_flags(args), num_threads=threads, num_slots=slots) as server:
        result["rows"] += compare_streams(
            server,
            peers,
            serving,
            load_text_processor(model).encode_prompt,
            quiet=quiet,
            progress=ConsoleProgress(),
        )
    result["disturbance"]["streams"] = quiet.as_json()
