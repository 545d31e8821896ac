"""Ratios to other engines, both sides taking turns in one run.

llama.cpp: give paths of its `llama-bench` and of a GGUF file of the same model; several --gguf make several peers; with
--llama-server the two HTTP servers are compared as well. llama-bench samples no tokens, we do. --transformers and
--vllm-python: the same checkpoint in bfloat16, each in a process of its own; besides decoding and prefill,
--concurrency streams at once, ours over HTTP, theirs without it. Nothing is installed.

Each repeat measures all sides back to back, in swapping order; a ratio is the median of the repeats' own ratios.
Repeats that other processes disturbed are discarded and measured again. Beside the ratios stands KL(fp32 || side) per
token of the fp32 model's own answers: of our side under each sparsity's plan, and of llama.cpp's files where there is a
llama-server (given, or beside llama-bench).
"""

import argparse
from typing import TYPE_CHECKING, Any

from glass_core.offline.commands.bench import compare_peers
from glass_core.offline.commands.bench.flags import add_common, add_engine, add_model, finish, session_of

if TYPE_CHECKING:
    from glass_core.offline.bench.compare import CompareSettings
    from glass_core.offline.bench.llama_cpp import LlamaBench
    from glass_core.offline.bench.peers.base import EnginePeer
    from glass_core.offline.bench.serving import ServingSettings
    from glass_core.offline.bench.session import Session

HELP = "ratios to llama.cpp, transformers and vLLM, taking turns in one run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    compare_peers.add_arguments(parser)
    parser.add_argument("--sparsities", default="0,0.5", help="comma-separated (default: 0,0.5)")
    parser.add_argument("--method", help="selection method (default: a_glass; griffin for --random)")
    parser.add_argument("--num-tokens", type=int, default=128, help="tokens decoded per timing (default: 128)")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="tokens in the cache before (default: 32)")
    parser.add_argument("--prefill-tokens", default="512", help="comma-separated (default: 512)")
    parser.add_argument("--concurrency", default="1,8", help="streams at once (default: 1,8)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of both sides, at least 5 (default: 5)")
    parser.add_argument(
        "--max-others-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="measure a repeat again when other processes used more of the machine meanwhile (default: 0.1)",
    )
    parser.add_argument(
        "--quality",
        action=argparse.BooleanOptionalAction,
        help="measure the KL to fp32 of both sides' settings (default: where the native runner runs a real model)",
    )
    parser.add_argument("--quality-tokens", type=int, default=160, help="answer tokens scored (default: 160)")
    add_engine(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.bench.report import print_compare

    compare_peers.check_arguments(args)
    settings = _settings(args)
    serving = _serving_settings(args, settings)
    peers = compare_peers.llama_peers(args)
    num_sequences = len(settings.sparsities) + 1
    with (
        compare_peers.child_peers(args, settings, serving) as children,
        session_of(args, num_sequences=num_sequences, num_tokens=settings.max_sequence_tokens) as session,
    ):
        result = _engines(args, session, [*peers, *children], settings)
        if args.llama_server is not None:
            _add_servers(args, session, peers, settings, serving, result)
        if children:
            compare_peers.stream_rows(args, children, serving, result)
        if _wants_quality(args, session):
            _add_quality(args, session, peers, settings, result)
    print_compare(result, Console())
    if "quality" in result:
        from glass_core.offline.bench.quality import print_quality  # brings torch

        print_quality(result["quality"], Console())
    return finish(args, result)


def _settings(args: argparse.Namespace) -> "CompareSettings":
    from glass_core.offline.bench.compare import CompareSettings
    from glass_core.offline.flags import parse_counts, parse_floats

    return CompareSettings(
        sparsities=parse_floats(args.sparsities, "--sparsities"),
        method=args.method or ("a_glass" if args.random is None else "griffin"),  # the latter needs no artifact
        num_tokens=args.num_tokens,
        prompt_tokens=args.prompt_tokens,
        prefill_tokens=parse_counts(args.prefill_tokens, "--prefill-tokens"),
        repeats=args.repeats,
        seed=args.seed,
        max_others_share=args.max_others_share,
    )


def _serving_settings(args: argparse.Namespace, settings: "CompareSettings") -> "ServingSettings":
    """The same answers over HTTP, to prompts of about as many tokens."""
    from glass_core.offline.bench.serving import ServingSettings, loads_of
    from glass_core.offline.flags import parse_counts

    return ServingSettings(
        loads=loads_of(parse_counts(args.concurrency, "--concurrency"), ()),
        sparsities=settings.sparsities,
        method=settings.method,
        prompt_words=settings.prompt_tokens,
        num_tokens=settings.num_tokens,
        repeats=settings.repeats,
        seed=settings.seed,
    )


def _engines(
    args: argparse.Namespace, session: "Session", peers: list["EnginePeer"], settings: "CompareSettings"
) -> dict[str, Any]:
    from dataclasses import asdict

    from glass_core.offline.bench.compare import compare_engines
    from glass_core.offline.bench.disturbance import QuietRepeats
    from glass_core.offline.progress import ConsoleProgress

    conditions = session.conditions(asdict(settings), args.command_line)
    conditions["peers"] = [peer.description() for peer in peers]
    quiet = QuietRepeats(settings.max_others_share)
    rows = compare_engines(session, peers, settings, quiet, ConsoleProgress())
    return {"conditions": conditions, "disturbance": {"engines": quiet.as_json()}, "rows": rows}


def _wants_quality(args: argparse.Namespace, session: "Session") -> bool:
    """Whether the quality is measured: as asked for, else where it can be."""
    if args.quality is None:
        return args.random is None and session.image is not None
    return bool(args.quality)


def _add_quality(
    args: argparse.Namespace,
    session: "Session",
    peers: list["LlamaBench"],
    settings: "CompareSettings",
    result: dict[str, Any],
) -> None:
    """Measure, and put the KL of both sides into the rows they belong to. The peer's needs its server: the one given,
    else the one beside its benchmark program."""
    from glass_core.offline.bench.quality import QualitySettings, add_quality, measure_quality
    from glass_core.offline.progress import ConsoleProgress

    beside = None if args.llama_bench is None else args.llama_bench.with_name("llama-server")
    server = args.llama_server or (beside if beside is not None and beside.is_file() else None)
    asked = QualitySettings(
        sparsities=settings.sparsities,
        method=settings.method,
        num_tokens=args.quality_tokens,
        seed=args.seed,
        llama_server=server,
        peers=tuple(peers) if server is not None else (),
    )
    result["quality"] = measure_quality(session, asked, ConsoleProgress())
    add_quality(result["rows"], result["quality"])


def _add_servers(
    args: argparse.Namespace,
    session: "Session",
    peers: list["LlamaBench"],
    settings: "CompareSettings",
    serving: "ServingSettings",
    result: dict[str, Any],
) -> None:
    from glass_core.offline.bench.compare import engine_speed
    from glass_core.offline.bench.compare_servers import ServerPair, compare_servers
    from glass_core.offline.bench.disturbance import QuietRepeats
    from glass_core.offline.commands.bench.flags import engine_config
    from glass_core.offline.commands.bench.serving import server_flags
    from glass_core.offline.progress import ConsoleProgress

    speed = engine_speed(session, settings.decode())
    quiet = QuietRepeats(settings.max_others_share)
    for peer in peers:
        pair = ServerPair(
            model=str(engine_config(args).model_path),
            flags=tuple(server_flags(args)),
            llama_server=args.llama_server,
            gguf=peer.gguf,
            num_threads=peer.num_threads,
            peer=f"llama-server {peer.label}",
        )
        result["rows"] += compare_servers(
            pair,
            serving,
            ConsoleProgress(),
            quiet=quiet,
            engine_speed=speed,
            image_bytes=None if session.image is None else session.image.payload_bytes,
        )
    result["disturbance"]["servers"] = quiet.as_json()
