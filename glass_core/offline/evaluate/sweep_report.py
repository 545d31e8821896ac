"""Length sweeps for people: tables on the terminal, a plot of KL against prompt length and position in the answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from glass_core.offline.evaluate.report import condition_labels, with_interval
from glass_core.offline.pictures import picture

# label of a condition -> (x, row with kl and its interval) per point
Points = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]


def prompt_points(result: Mapping[str, Any]) -> Points:
    """KL of every condition by prompt length; empty without such a sweep."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for entry in result.get("prompt_lengths", []):
        for label, row in zip(condition_labels(entry["rows"]), entry["rows"], strict=True):
            found.setdefault(label, []).append((str(entry["prompt_tokens"]), row))
    return found


def answer_points(result: Mapping[str, Any]) -> Points:
    """KL of every condition by position in the answer; empty without such a sweep."""
    rows = [row for row in result["rows"] if "answer_spans" in row]
    return {
        label: [(f"{span['first']}-{span['end'] - 1}", span) for span in row["answer_spans"] if span["num_tokens"]]
        for label, row in zip(condition_labels(rows), rows, strict=True)
    }


_SWEEPS = (("prompt tokens", prompt_points), ("answer tokens", answer_points))


def print_sweeps(result: Mapping[str, Any], console: Console) -> None:
    """KL of every condition at every length, one table per sweep that was made."""
    for title, points_of in _SWEEPS:
        points = points_of(result)
        if points:
            console.print(_table(f"KL by {title}", points))


def _table(title: str, points: Points) -> Table:
    table = Table(Column("condition", min_width=12), title=title)
    for name in dict.fromkeys(name for line in points.values() for name, _ in line):
        table.add_column(name, justify="right", no_wrap=True)
    for label, line in points.items():
        table.add_row(label, *(with_interval(row, "kl", "{:.3f}") for _, row in line))
    return table


def plot_sweeps(result: Mapping[str, Any], path: Path) -> None:
    """One panel per sweep that was made, with the bootstrap intervals as bars; nothing is written without any."""
    sweeps = [(title, points) for title, points_of in _SWEEPS if (points := points_of(result))]
    if not sweeps:
        return
    with picture(path, (5.5 * len(sweeps), 4.2)) as figure:
        panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
        for axes, (title, points) in zip(panels, sweeps, strict=True):
            for label, line in points.items():
                axes.errorbar(
                    [name for name, _ in line],
                    [row["kl"] for _, row in line],
                    yerr=list(zip(*(interval_arms(row, "kl") for _, row in line), strict=True)),
                    marker="o",
                    capsize=2,
                    label=label,
                )
            axes.set(xlabel=title, ylabel="mean KL(dense ‖ sparse), nats")
            axes.grid(alpha=0.3)
        panels[-1].legend(fontsize="small")
        figure.suptitle(f"{result['conditions']['model']}: {result['dense']['num_answers']} long-form answers")


def interval_arms(row: Mapping[str, Any], name: str) -> tuple[float, float]:
    """How far the interval reaches below and above the value; zeros without one. A percentile interval need not hold
    the value itself."""
    value, interval = row[name], row[f"{name}_interval"]
    return (0.0, 0.0) if interval is None else (max(value - interval[0], 0.0), max(interval[1] - value, 0.0))
