"""The frontier for people: a table by speed, and the plot of KL against tokens per second."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glass_core.offline.evaluate.report import with_interval
from glass_core.offline.evaluate.sweep_report import interval_arms
from glass_core.offline.pictures import picture

_MARKERS = {"dense": "s", "static": "o", "refined": "D", "llama.cpp": "^"}


def print_frontier(result: Mapping[str, Any], console: Console) -> None:
    """One line per point, the fastest first."""
    table = Table("point", title="quality against decoding speed, batch 1")
    for name in ("KL to float32", "top-1", "tokens/s", "over rivals as bad"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(result["points"], key=lambda row: -float(row["tokens_per_second"])):
        speedup = row.get("speedup")
        table.add_row(
            row["label"],
            with_interval(row, "kl", "{:.4f}"),
            with_interval(row, "agreement", "{:.1%}"),
            f"{row['tokens_per_second']:.0f}\n{row['tokens_per_second_min']:.0f}-{row['tokens_per_second_max']:.0f}",
            "" if speedup is None else f"{speedup:.2f}",
        )
    console.print(table)
    if result["refinement_problem"] is not None:
        console.print(f"no refined points: {result['refinement_problem']}")


def series_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(legend entry, kind) of a point."""
    if row["side"] == "llama.cpp":
        return "llama.cpp", "llama.cpp"
    if row["sparsity"] == 0 or row["method"] == "dense":
        return "glass, dense", "dense"
    kind = "refined" if row["refine"] else "static"
    return f"glass {row['format']}, {'refined' if row['refine'] else row['method']}", kind


def plot_frontier(result: Mapping[str, Any], path: Path) -> None:
    """KL (logarithmic, with its interval) against tokens/s (with the range of the repeats): lower right is better."""
    with picture(path, (8, 5), dpi=90) as figure:
        axes = figure.subplots()
        series: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in result["points"]:
            series.setdefault(series_of(row), []).append(row)
        for (label, kind), rows in series.items():
            _plot_series(axes, label, kind, rows)
        axes.set(xlabel="decoded tokens per second, batch 1", ylabel="mean KL(float32 ‖ point), nats", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
        first = result["points"][0]
        axes.set_title(f"{result['conditions']['model']}: {first['num_tokens']} answer tokens; lower right is better")


def _plot_series(axes: Any, label: str, kind: str, rows: list[Mapping[str, Any]]) -> None:
    speeds = [row["tokens_per_second"] for row in rows]
    ranges = [
        (row["tokens_per_second"] - row["tokens_per_second_min"], row["tokens_per_second_max"] - speed)
        for row, speed in zip(rows, speeds, strict=True)
    ]
    axes.errorbar(
        speeds,
        [row["kl"] for row in rows],
        xerr=list(zip(*ranges, strict=True)),
        yerr=list(zip(*(interval_arms(row, "kl") for row in rows), strict=True)),
        fmt=_MARKERS[kind],
        linestyle="-" if kind in ("static", "refined") else "none",
        linewidth=0.8,
        elinewidth=0.6,
        label=label,
    )
    for row, speed in zip(rows, speeds, strict=True):
        name = row["label"].removeprefix("llama.cpp ") if kind not in {"static", "refined"} else ""
        note = name or f"{row['sparsity']:g}"
        axes.annotate(note, (speed, row["kl"]), xytext=(4, 4), textcoords="offset points", fontsize=7)
