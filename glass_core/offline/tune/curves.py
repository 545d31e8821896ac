"""The learning curves of a tuning run as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from glass_core.offline.pictures import picture


def plot_curves(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture (PNG) of a result made by `Outcome.to_json_object`: refinement above, what is static below."""
    rows = [("refined", result), ("static", result["static"])]
    with picture(path, (15, 4.5 * len(rows)), dpi=110) as figure:
        for panels, (name, part) in zip(figure.subplots(len(rows), 3), rows, strict=True):
            learning, stopping, deciding = panels
            _plot_steps(learning, stopping, part)
            _plot_decision(deciding, part)
            for axes in panels:
                axes.set_title(f"{name}: {axes.get_title()}")


def _plot_steps(learning: Axes, stopping: Axes, result: Mapping[str, Any]) -> None:
    """KL at every step, on both texts, as shares of where the descent began."""
    losses = np.array(result["learning_kl"]).reshape(-1, len(result["sparsities"]), len(result["domains"])).mean(axis=2)
    held_out = np.array([point["kl"] for point in result["stopping"]])
    steps = [point["num_steps"] for point in result["stopping"]]
    learning_steps = result.get("learning_steps", range(len(losses)))
    for number, sparsity in enumerate(result["sparsities"]):
        learning.plot(learning_steps, losses[:, number] / losses[0, number], marker="o", label=f"sparsity {sparsity:g}")
        stopping.plot(steps, held_out[:, number] / held_out[0, number], marker="o", label=f"sparsity {sparsity:g}")
    stopping.axvline(result["best_num_steps"], color="gray", linestyle="--", label="kept")
    learning.set_title("text that is learned from")
    stopping.set_title("text that is stopped by")
    for axes in (learning, stopping):
        axes.set(xlabel="step", ylabel="KL / KL at the start")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()


def _plot_decision(axes: Axes, result: Mapping[str, Any]) -> None:
    """KL of what was tuned as shares of the default's, with intervals."""
    *gains, _ = result["deciding"]["gains"]
    ratios = np.exp([[-gain[end] for end in ("log_kl_ratio", "low", "high")] for gain in gains])
    axes.axhline(1.0, color="gray", linestyle=":")
    spread = np.abs(ratios[:, 1:] - ratios[:, :1]).T
    axes.errorbar(result["sparsities"], ratios[:, 0], yerr=spread, fmt="o", capsize=4)
    axes.set(xlabel="sparsity", ylabel="KL / KL of the default", title="text that is decided by, 95 % intervals")
