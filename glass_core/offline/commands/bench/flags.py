"""Flags and steps that several benchmarks share."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_core.config import AUTO, KV_CACHE_DTYPES, CacheConfig, EngineConfig, resolve_model
from glass_core.errors import ConfigurationError

if TYPE_CHECKING:
    from glass_core.offline.bench.random_model import RandomModel
    from glass_core.offline.bench.session import Session

_DTYPES = (AUTO, "float32", "bfloat16", "int4", "int8", "bf16")
_RANDOM_TYPES = {AUTO: "Q4_0", "int4": "Q4_0", "int8": "Q8_0", "bf16": "BF16"}


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL or --random SHAPE."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a pulled model's name or a model folder")
    parser.add_argument(
        "--random", metavar="SHAPE", help="instead: random weights of the shape llama-1b, llama-3b or llama-8b"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How the model is run."""
    parser.add_argument(
        "--dtype", choices=_DTYPES, default=AUTO, help="int4, int8, bf16: native; float32, bfloat16: torch_runner"
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--runner", default=AUTO, help="compute runner (default: native where it can serve)")
    parser.add_argument("--threads", type=int, help="compute threads (default: the runner's own choice)")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=KV_CACHE_DTYPES,
        default=KV_CACHE_DTYPES[0],
        help=f"of keys and values in the native runner (default: {KV_CACHE_DTYPES[0]})",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result as JSON")


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Raises ModelNotFoundError for a model that is not there."""
    model_dir = resolve_model(args.model)
    return EngineConfig(
        model_path=model_dir,
        model_name=model_dir.name,
        runner=args.runner,
        dtype=args.dtype,
        device=args.device,
        num_threads=args.threads,
        cache=CacheConfig(kv_cache_dtype=args.kv_cache_dtype),
    )


@contextmanager
def session_of(args: argparse.Namespace, *, num_sequences: int, num_tokens: int) -> Iterator["Session"]:
    """The session of MODEL or --random. Raises ConfigurationError when both or none are given."""
    from glass_core.offline.bench.session import open_random_session, open_session

    if (args.model is None) == (args.random is None):
        raise ConfigurationError("give either MODEL or --random SHAPE")
    if args.random is None:
        with open_session(engine_config(args), num_sequences=num_sequences, num_tokens=num_tokens) as session:
            yield session
        return
    with open_random_session(
        random_model_of(args),
        num_threads=args.threads,
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        kv_cache_dtype=args.kv_cache_dtype,
    ) as session:
        yield session


def random_model_of(args: argparse.Namespace) -> "RandomModel":
    """The model of --random in --dtype, made first where it is not there yet. In int4 its blocks are Q4_0: the peer's
    fastest type."""
    from glass_core.offline.bench.random_model import random_model

    if args.runner not in (AUTO, "native") or args.dtype not in _RANDOM_TYPES:
        raise ConfigurationError("--random models run on the native runner, in int4, int8 or bf16")
    return random_model(args.random, _RANDOM_TYPES[args.dtype], seed=args.seed)


def finish(args: argparse.Namespace, result: Mapping[str, Any]) -> int:
    """Write the result where it was asked for."""
    from glass_core.offline.results import write_result

    if args.json is not None:
        write_result(args.json, result)
    return 0
