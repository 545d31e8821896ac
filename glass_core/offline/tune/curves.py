"""The learning curves of a tuning run as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_curves(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture (PNG) of a result made by `Outcome.to_json_object`."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = np.array(result["learning_kl"]).reshape(-1, len(result["sparsities"]), len(result["domains"]))
    for number, sparsity in enumerate(result["sparsities"]):
        left.plot(losses[:, number].mean(axis=1), linewidth=1, label=f"sparsity {sparsity:g}")
        steps = [point["num_steps"] for point in result["stopping"]]
        ratios = [point["kl"][number] / result["stopping"][0]["kl"][number] for point in result["stopping"]]
        right.plot(steps, ratios, marker="o", label=f"sparsity {sparsity:g}")
    left.set(yscale="log", xlabel="step", ylabel="KL to dense, nats per token", title="text that is learned from")
    right.axhline(1.0, color="gray", linestyle=":")
    right.axvline(result["best_num_steps"], color="gray", linestyle="--", label="kept")
    right.set(xlabel="step", ylabel="KL / KL of the default table", title="held-out text, equal reads")
    for axes in (left, right):
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
