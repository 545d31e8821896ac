"""Results of an evaluation for people: a table on the terminal, a plot of KL and perplexity against sparsity."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glass_core.offline.pictures import picture

Row = Mapping[str, Any]


def print_table(result: Mapping[str, Any], console: Console) -> None:
    """All rows, under the dense perplexity. top-1: agreement with the dense model; reads: share of FFN weights. When a
    runner is compared with the reference, instead the KL from the reference under the same condition."""
    dense = result["dense"]
    compared = any("kl_same_condition" in row for row in result["rows"])
    title = f"long-form · dense ppl {dense['ppl']:.2f} · {dense['num_answers']} answers, {dense['num_tokens']} tokens"
    table = Table("condition", title=title)
    for name in ("ppl", "KL", "top-1", "KL to same" if compared else "reads"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        label = f"{label_of(row)} at {row['sparsity']:g}"
        table.add_row(
            f"{_runner(row)}\n{label}" if compared else label,
            with_interval(row, "ppl", "{:.2f}"),
            with_interval(row, "kl", "{:.4f}"),
            with_interval(row, "agreement", "{:.1%}"),
            with_interval(row, "kl_same_condition", "{:.4f}") if compared else f"{row['ffn_reads']:.3f}",
        )
    console.print(table)
    bootstrap = result["bootstrap"]
    console.print(f"below each: the {bootstrap['level']:.0%} bootstrap interval over the answers")


def with_interval(row: Row, name: str, form: str) -> str:
    """A value and, in a second line, its interval; empty where the row lacks it."""
    if name not in row:
        return ""
    interval = row[f"{name}_interval"]
    bounds = "" if interval is None else f"\n{form.format(interval[0])}-{form.format(interval[1])}"
    return form.format(row[name]) + bounds


def label_of(row: Row) -> str:
    """A row's method, lambda and profile. Refined rows have no lambda, in older results all the same one."""
    weight = "" if row["lambda"] is None or row["refine"] else f" λ {row['lambda']:g}"
    profile = "" if row["profile"] == "uniform" else f" ({row['profile']})"
    method = "refined" if row["refine"] else row["method"]
    return f"{method}{weight}{profile}"


def condition_labels(rows: Sequence[Row]) -> list[str]:
    """A name of each row's condition: what distinguishes it, and its sparsity."""
    several = len({_runner(row) for row in rows}) > 1
    return [f"{label_of(row)} at {row['sparsity']:g}" + (f" on {_runner(row)}" if several else "") for row in rows]


def _runner(row: Row) -> str:
    return f"{row['runner']} {row['dtype']}"


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows grouped into one labeled curve per method, lambda, profile and, where there are several, runner, by rising
    sparsity."""
    several = len({_runner(row) for row in rows}) > 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        runner = f" on {_runner(row)}" if several else ""
        found.setdefault(f"{label_of(row)}{runner}", []).append(row)
    return {label: sorted(group, key=lambda row: float(row["sparsity"])) for label, group in found.items()}


def plot_curves(result: Mapping[str, Any], path: Path) -> None:
    """KL and perplexity against sparsity as a PNG (or what the file's ending asks for)."""
    with picture(path, (10, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        for axes, key, label in (
            (left, "kl", "mean KL(dense ‖ sparse), nats"),
            (right, "ppl", "perplexity of the answer"),
        ):
            for name, rows in curves(result["rows"]).items():
                axes.plot([row["sparsity"] for row in rows], [row[key] for row in rows], marker="o", label=name)
            axes.set_xlabel("sparsity")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        right.set_yscale("log")
        right.axhline(result["dense"]["ppl"], color="black", linestyle=":", label="dense")
        right.legend()
        figure.suptitle(f"{result['conditions']['model']}: {result['dense']['num_answers']} long-form answers")
