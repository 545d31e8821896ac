"""Results of the benchmarks as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Result = Mapping[str, Any]


def print_decode(result: Result, console: Console) -> None:
    """One line per subject: median speed, ratio to the first line and its spread beside the ratio of the bytes needed,
    bandwidth and its share of the limit, what this machine can read, and quality where it was measured."""
    conditions = result["conditions"]
    size = f"batch {conditions['batch_size']} · {conditions['num_tokens']} tokens after {conditions['prompt_tokens']}"
    columns = ["sparsity", "reads", "tokens/s", "ratio", "min - max", "bytes", "MB/token", "GB/s", "limit"]
    columns += ["KL"] if any("kl" in row for row in result["rows"]) else []
    table = _table(f"decode · {_engine(conditions)} · {size}", *columns)
    table.box, table.padding = box.SIMPLE, (0, 0)  # ten columns in eighty characters
    for column in table.columns[:-1]:
        column.no_wrap = True
    for row in result["rows"]:
        table.add_row(
            f"{row['sparsity']:g}" + (" refined" if row["refine"] else ""),
            f"{1 - row['effective_sparsity']:.3f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['ratio_to_first']:.2f}",
            f"{row['ratio_to_first_min']:.2f}-{row['ratio_to_first_max']:.2f}",
            f"{row['ratio_of_bytes']:.2f}",
            f"{row['bytes_per_token'] / 1e6:.1f}",
            f"{row['gb_per_second']:.1f}",
            f"{row['share_of_limit']:.0%}",
            *([_number(row.get("kl"))] if "KL" in columns else []),
        )
    console.print(table)
    limits = conditions["read_bandwidth"]
    console.print(
        f"this machine reads {limits['cached_gb_per_second']:.1f} GB/s of {limits['cached_bytes'] >> 20} MiB, "
        f"{limits['uncached_gb_per_second']:.1f} of {limits['uncached_bytes'] >> 20} MiB"
    )


def print_prefill(result: Result, console: Console) -> None:
    """One line per length."""
    conditions = result["conditions"]
    columns = ("prompt", "tokens/s", "min - max", "ms", "selection ms", "views ms", "share")
    table = _table(f"prefill · {_engine(conditions)} · selection {conditions['method']}", *columns)
    for row in result["rows"]:
        table.add_row(
            str(row["prompt_tokens"]),
            *_speed(row),
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['selection_seconds'] * 1e3:.2f}",
            f"{row['view_seconds'] * 1e3:.2f}",
            f"{row['selection_share']:.1%}",
        )
    console.print(table)


def print_serving(result: Result, console: Console) -> None:
    """One line per repeat, load and sparsity."""
    conditions = result["conditions"]
    size = f"{conditions['num_tokens']} tokens after {conditions['prompt_words']} words"
    title = f"serving · {conditions['model']} · {size} · ms as p50 / p90 / p99"
    table = _table(title, "load", "sparsity", "done", "tok/s", "TTFT", "ITL", "E2E", "goodput/s")
    for row in result["rows"]:
        table.add_row(
            _load(row),
            f"{row['sparsity']:g}",
            f"{row['num_completed']}" + (f" (-{row['num_failed']})" if row["num_failed"] else ""),
            f"{row['tokens_per_second']:.1f}",
            *(_percentiles(row[name]) for name in ("ttft_ms", "itl_ms", "e2e_ms")),
            f"{row['goodput_requests_per_second']:.2f}",
        )
    console.print(table)
    share = max(row["generator_cpu_share"] for row in result["rows"])
    console.print(f"the load generator used at most {share:.1%} of one processor")


def print_compare(result: Result, console: Console) -> None:
    """One line per thing compared, and how much others disturbed it."""
    conditions = result["conditions"]
    print_pairs(result["rows"], f"compare · {_engine(conditions)} · {conditions['repeats']} repeats", console)
    for side, disturbance in result["disturbance"].items():
        print_disturbance(side, disturbance, console)


def print_pairs(rows: Sequence[Result], title: str, console: Console) -> None:
    """One line per pair, with the KL of both sides where it was measured."""
    table = Table("what", title=title)
    table.add_column("peer")
    for name in ("ours", "theirs", "ratio", "min - max", "KL ours / theirs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["what"] if row["unit"] == "tokens/s" else f"{row['what']}, {row['unit']}",
            row["peer"],
            f"{row['ours']:.4g}",
            f"{row['theirs']:.4g}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}",
            f"{_number(row.get('kl_ours'))} / {_number(row.get('kl_theirs'))}" if row.get("kl_ours") else "",
        )
    console.print(table)


def print_disturbance(side: str, disturbance: Result, console: Console) -> None:
    """What was measured again, and what was left."""
    console.print(
        f"{side}: {disturbance['num_discarded']} disturbed repeats discarded; in those kept, other processes used "
        f"at most {disturbance['largest_kept_others_share']:.0%} of the machine"
    )


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(first, title=title)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _engine(conditions: Result) -> str:
    kernels = f"{conditions['isa']} · {conditions['threads']} threads"
    cache = f"KV {conditions['kv_cache_dtype']}"
    return f"{conditions['model']} · {conditions['runner']} {conditions['quantization']} · {cache} · {kernels}"


def _speed(row: Result) -> tuple[str, str]:
    spread = f"{row['tokens_per_second_min']:.1f} - {row['tokens_per_second_max']:.1f}"
    return f"{row['tokens_per_second']:.1f}", spread


def _load(row: Result) -> str:
    return f"{row['concurrency']} busy" if row["load"] == "closed" else f"{row['rate']:g}/s"


def _percentiles(values: Mapping[str, float | None]) -> str:
    found = [values[name] for name in ("p50", "p90", "p99")]
    return " / ".join("-" if value is None else f"{value:.3g}" for value in found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
