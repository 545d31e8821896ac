"""An artifact as one picture: importance spectra, sensitivity, agreement of two rankings."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from glass_core.offline.inspection.comparison import Comparison
from glass_core.offline.inspection.spectra import spectra
from glass_core.offline.pictures import picture
from glass_core.sparsity.artifact import GlobalStatistics


def plot_artifact(statistics: GlobalStatistics, comparison: Comparison | None, path: Path) -> None:
    """Write the picture (PNG, or what the file's ending asks for)."""
    with picture(path, (15, 4.5)) as figure:
        left, middle, right = figure.subplots(1, 3)
        _plot_spectra(left, statistics)
        _plot_sensitivity(middle, statistics)
        _plot_overlap(right, comparison)
        corpus = statistics.manifest.corpus
        figure.suptitle(
            f"{statistics.manifest.model_name}: {corpus.get('num_tokens')} tokens of source {corpus.get('source')}"
        )


def _plot_spectra(axes: Any, statistics: GlobalStatistics) -> None:
    curves = spectra(statistics.activation_l1)
    share = np.linspace(0, 1, curves.shape[1])
    for layer, curve in enumerate(curves):
        color = colormaps["viridis"](layer / max(len(curves) - 1, 1))
        label = f"layer {layer}" if layer in (0, len(curves) - 1) else None
        axes.plot(share, np.maximum(curve, 1e-4), color=color, linewidth=1, label=label)
    axes.set(yscale="log", xlabel="neurons, best first", ylabel="importance / largest", title="importance spectra")
    axes.legend()


def _plot_sensitivity(axes: Any, statistics: GlobalStatistics) -> None:
    axes.set(xlabel="layer", ylabel="KL at density 0.5, nats", title="layer sensitivity")
    if statistics.sensitivity is None:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    axes.bar(range(len(statistics.sensitivity)), statistics.sensitivity)
    axes.set_yscale("log")


def _plot_overlap(axes: Any, comparison: Comparison | None) -> None:
    axes.set(xlabel="layer", ylabel="shared neurons at density 0.5", title="agreement of rankings", ylim=(0, 1))
    axes.axhline(0.5, color="gray", linestyle=":", label="chance")
    if comparison is not None:
        axes.plot(range(len(comparison.overlaps)), comparison.overlaps, marker="o", label=comparison.label)
    axes.legend()
