"""The oracle comparison for people: a table of means over the layers, and a plot of every layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glass_core.offline.evaluate.report import label_of, with_interval
from glass_core.offline.pictures import picture

_PANELS = (("jaccard", "with the answer's best neurons"), ("token_jaccard", "with each token's best neurons"))


def print_overlap(result: Mapping[str, Any], console: Console) -> None:
    """One line per condition, means over the layers."""
    title = f"Jaccard with the oracle · {result['num_answers']} answers, {result['num_tokens']} tokens"
    table = Table("condition", title=title)
    for name in ("of the answer", "of each token"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        cells = (with_interval(row, name, "{:.3f}") for name, _ in _PANELS)
        table.add_row(f"{label_of(row)} at {row['sparsity']:g}", *cells)
    console.print(table)


def plot_overlap(result: Mapping[str, Any], path: Path) -> None:
    """Both Jaccard indices against the layer, a line per condition with its interval as a band."""
    with picture(path, (11, 4.2), dpi=110) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, title) in zip(panels, _PANELS, strict=True):
            for row in result["rows"]:
                _plot_layers(axes, row, name)
            axes.set(xlabel="layer", ylabel="Jaccard index", title=title, ylim=(0, 1))
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize="small")
        figure.suptitle(f"{result['conditions']['model']}: neurons kept, {result['num_answers']} long-form answers")


def _plot_layers(axes: Any, row: Mapping[str, Any], name: str) -> None:
    numbers, layers = range(len(row["layers"])), row["layers"]
    (line,) = axes.plot(numbers, [layer[name] for layer in layers], label=f"{label_of(row)} at {row['sparsity']:g}")
    bounds = [layer[f"{name}_interval"] for layer in layers]
    if None not in bounds:
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(numbers, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
