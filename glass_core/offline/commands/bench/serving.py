"""Latency, throughput and goodput of a server under load.

MODEL is served in a subprocess on a free loopback port; --url loads an OpenAI-compatible server that already runs on
this machine. --concurrency keeps so many requests in flight (closed loop); --rates sends so many a second whatever the
server does (open loop, Poisson arrivals). Every request is a streamed completion of a prompt of its own, of exactly
--num-tokens tokens at temperature 0. --against-engine repeats the closed loops on our own engine without HTTP, taking
turns with the server: the ratio is what the server, its text and this load generator cost. Latencies count from when a
request was due. ITL is the time between two chunks of text, TPOT the mean time per token after the first; goodput
counts answers that meet every --slo-*.
"""

import argparse
from typing import TYPE_CHECKING, Any

from glass_core.errors import ConfigurationError
from glass_core.offline.commands.bench.flags import add_common, add_engine, finish

if TYPE_CHECKING:
    from glass_core.offline.bench.load.process import ServerProcess
    from glass_core.offline.bench.serving import ServingSettings

HELP = "latency, throughput and goodput over HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="serve this pulled model or model folder")
    parser.add_argument("--url", help="instead: a running server, such as http://127.0.0.1:8000 (this machine only)")
    parser.add_argument("--served-model", help="the model's name in requests to --url (default: its first)")
    parser.add_argument("--concurrency", default="1,8", help="closed loops: requests in flight (default: 1,8)")
    parser.add_argument("--rates", default="", help="open loops: requests per second (default: none)")
    parser.add_argument("--sparsities", default="0", help="comma-separated (default: 0)")
    parser.add_argument("--method", help="glass_method of sparse requests (default: the server's)")
    parser.add_argument("--prompt-words", type=int, default=32, help="about a token each (default: 32)")
    parser.add_argument("--num-tokens", type=int, default=64, help="tokens of every answer (default: 64)")
    parser.add_argument("--num-requests", type=int, help="per load (default: 4 per request in flight, at least 8)")
    parser.add_argument("--max-seconds", type=float, default=120.0, help="per load; the rest is cut off (default: 120)")
    parser.add_argument("--repeats", type=int, default=1, help="rounds over all loads (default: 1)")
    parser.add_argument(
        "--against-engine", action="store_true", help="the closed loops also without HTTP, --repeats times in turns"
    )
    parser.add_argument(
        "--max-others-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="--against-engine: measure a repeat again when other processes used more meanwhile (default: 0.1)",
    )
    for name, meaning in (("ttft", "time to first token"), ("tpot", "time per output token"), ("e2e", "whole answer")):
        parser.add_argument(f"--slo-{name}-ms", type=float, help=f"goal for the {meaning}, in milliseconds")
    add_engine(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from glass_core.offline.bench.report import print_disturbance, print_pairs, print_serving

    settings = _settings(args)
    if (args.model is None) == (args.url is None):
        raise ConfigurationError("give either MODEL or --url")
    if args.against_engine and (args.model is None or not args.concurrency):
        raise ConfigurationError("--against-engine needs MODEL and --concurrency")
    result = _load_running(args, settings) if args.model is None else _load_own(args, settings)
    print_serving(result, Console())
    if args.against_engine:
        print_pairs(result["engine"], "the same streams over HTTP and in the engine alone", Console())
        print_disturbance("streams", result["disturbance"]["streams"], Console())
    return finish(args, result)


def _settings(args: argparse.Namespace) -> "ServingSettings":
    from glass_core.offline.bench.load.metrics import Slo
    from glass_core.offline.bench.serving import ServingSettings, loads_of
    from glass_core.offline.flags import parse_counts, parse_floats

    concurrencies = parse_counts(args.concurrency, "--concurrency") if args.concurrency else ()
    rates = parse_floats(args.rates, "--rates") if args.rates else ()
    return ServingSettings(
        loads=loads_of(concurrencies, rates),
        sparsities=parse_floats(args.sparsities, "--sparsities"),
        method=args.method,
        prompt_words=args.prompt_words,
        num_tokens=args.num_tokens,
        num_requests=args.num_requests,
        max_seconds=args.max_seconds,
        repeats=args.repeats,
        seed=args.seed,
        slo=Slo(args.slo_ttft_ms, args.slo_tpot_ms, args.slo_e2e_ms),
    )


def _load_running(args: argparse.Namespace, settings: "ServingSettings") -> dict[str, Any]:
    from glass_core.offline.bench.load.target import target_of
    from glass_core.offline.bench.serving import serving_result
    from glass_core.offline.progress import ConsoleProgress

    target = target_of(args.url, args.served_model)
    return serving_result(target, settings, ConsoleProgress(), {"url": args.url}, args.command_line)


def _load_own(args: argparse.Namespace, settings: "ServingSettings") -> dict[str, Any]:
    from glass_core.offline.bench.load.process import LOOPBACK, ServerProcess, free_port, glass_command
    from glass_core.offline.bench.load.target import target_of
    from glass_core.offline.bench.serving import served_conditions, serving_result
    from glass_core.offline.commands.bench.flags import engine_config
    from glass_core.offline.progress import ConsoleProgress

    config, port = engine_config(args), free_port()
    # the server gets the most demanding load without making it wait for a place
    flags = [*server_flags(args), "--max-num-sequences", str(settings.max_concurrency)]
    with ServerProcess(glass_command(str(config.model_path), port, flags), port, "/ready") as server:
        target = target_of(f"http://{LOOPBACK}:{port}")
        served = served_conditions(target)
        conditions = {**served, "quantization": served.get("dtype"), "start_seconds": server.start_seconds}
        result = serving_result(target, settings, ConsoleProgress(), conditions, args.command_line)
        result["conditions"]["peak_rss_bytes"] = server.peak_rss_bytes()
        if args.against_engine:
            _add_engine(args, server, settings, result)
    return result


def _add_engine(
    args: argparse.Namespace, server: "ServerProcess", settings: "ServingSettings", result: dict[str, Any]
) -> None:
    """Put the closed loops over HTTP against those in the engine alone into a result."""
    from glass_core.offline.bench.compare_streams import compare_streams
    from glass_core.offline.bench.disturbance import QuietRepeats
    from glass_core.offline.bench.peers.own_engine import OwnEngine
    from glass_core.offline.commands.bench.flags import engine_config
    from glass_core.offline.progress import ConsoleProgress
    from glass_core.text import load_text_processor

    config, quiet = engine_config(args), QuietRepeats(args.max_others_share)
    encode = load_text_processor(config.model_path).encode_prompt
    with OwnEngine(config, method=args.method, max_sequences=settings.max_concurrency) as engine:
        result["engine"] = compare_streams(server, [engine], settings, encode, quiet=quiet, progress=ConsoleProgress())
    result["disturbance"] = {"streams": quiet.as_json()}


def server_flags(args: argparse.Namespace) -> list[str]:
    """The engine's flags as the server's own."""
    threads = [] if args.threads is None else ["--num-threads", str(args.threads)]
    engine = ["--runner", args.runner, "--dtype", args.dtype, "--device", args.device]
    return [*engine, "--kv-cache-dtype", args.kv_cache_dtype, *threads]
