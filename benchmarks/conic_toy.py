"""ConicGrad beside the mean gradient, CAGrad and UPGrad on the toy problem: who reaches the global minimum, and when.

    python benchmarks/conic_toy.py --plot benchmarks/conic_toy.png

Five starts, Adam with rate 1e-3, 50,000 steps, everything deterministic; some minutes, most of them UPGrad's. Prints a
Markdown table and draws the paths over the mean loss. UPGrad is torchjd's own (`torchjd[quadprog-projector]`). Its
CAGrad solves the problem with cvxpy, milliseconds a call; for two objectives the solution is closed, and `--check`
compares the two (needs `torchjd[cagrad]`). In the steep valleys the paths are chaotic: `--copies 16` says how far steps
depend on moving the starts by a millionth (without UPGrad, which goes matrix by matrix).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchjd.aggregation import CAGradWeighting, UPGradWeighting

from glass_core.offline.tune import toy
from glass_core.offline.tune.cone import ConicCombination, Floats
from glass_core.offline.tune.conic_grad import DEFAULT_WEIGHT_STEP

C = 0.5
"""of ConicGrad (a cosine) unless `--c` says otherwise, and of CAGrad (a radius)"""
NEAR_THE_MINIMUM = 0.95 * toy.GLOBAL_MINIMUM
NORM_EPSILON = 1e-4


def mean_gradient(grams: Floats) -> Floats:
    """Equal coefficients."""
    return np.full(grams.shape[:-1], 0.5)


def cagrad(grams: Floats) -> Floats:
    """CAGrad (arXiv 2110.14048, algorithm 1) for two objectives, coefficients as those of torchjd's.

    The least of <g_w, g_0> + c |g_0| |g_w| over w = (t, 1 - t), 0 <= t <= 1, in closed form: the stationary point of a
    line plus a hyperbola.
    """
    grams = grams / np.maximum(np.trace(grams, axis1=1, axis2=2), np.finfo(float).tiny)[:, None, None]
    first, both, second = grams[:, 0, 0], grams[:, 0, 1], grams[:, 1, 1]
    radius = C * np.sqrt(np.maximum(grams.mean(axis=(1, 2)), 0))
    first_share = _least(first, both, second, radius)
    weights = np.stack([first_share, 1 - first_share], axis=1)
    length = np.sqrt(np.maximum(np.einsum("si,sij,sj->s", weights, grams, weights), 0))
    stationary = length < NORM_EPSILON
    pull = radius / np.where(stationary, 1, length)
    coefficients: Floats = np.where(stationary[:, None], 0, 0.5 + pull[:, None] * weights)
    return coefficients


def _least(first: Floats, both: Floats, second: Floats, radius: Floats) -> Floats:
    """The t of `cagrad`; |g_w|^2 = spread (t - nearest)^2 + rest."""
    slope = (first - second) / 2
    spread = np.maximum(first - 2 * both + second, np.finfo(float).tiny)
    nearest = (second - both) / spread
    rest = np.maximum(second - spread * nearest * nearest, 0)
    steepness = radius * radius * spread - slope * slope
    turning = -slope * np.sqrt(rest / (spread * np.where(steepness > 0, steepness, 1)))
    return np.where(steepness > 0, np.clip(nearest + turning, 0, 1), np.where(slope > 0, 0.0, 1.0))


def upgrad(grams: Floats) -> Floats:
    """torchjd's, matrix by matrix."""
    weighting = UPGradWeighting()
    return np.stack([weighting(gram).numpy() for gram in torch.from_numpy(grams)])


def methods(c: float = C) -> dict[str, toy.Combine]:
    return {
        "mean gradient": mean_gradient,
        "CAGrad": cagrad,
        "UPGrad": upgrad,
        "ConicGrad": ConicCombination(c, DEFAULT_WEIGHT_STEP).coefficients,
    }


def table(descents: dict[str, toy.Descent]) -> Iterator[str]:
    """Per method and start: steps until the loss was within 5 % of the minimum, and the last loss."""
    starts = [f"({x1:g}, {x2:g})" for x1, x2 in toy.STARTS]
    yield f"| method | {' | '.join(starts)} |"
    yield f"|---{'|---' * len(starts)}|"
    for name, descent in descents.items():
        steps = descent.steps_to(NEAR_THE_MINIMUM)
        cells = [
            f"{step if step >= 0 else 'never'} ({loss:.3f})"
            for step, loss in zip(steps, descent.losses[-1], strict=True)
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def spread_table(num_copies: int, c: float, num_steps: int) -> Iterator[str]:
    """Per method and start: how many of its copies arrive, and the least, median and largest of their steps."""
    moves = np.random.default_rng(0).normal(scale=1e-6, size=(num_copies, *toy.STARTS.shape))
    starts = (toy.STARTS + moves).reshape(-1, 2)
    for name, combine in methods(c).items():
        if combine is not upgrad:
            descent = toy.descend(combine, num_steps, NEAR_THE_MINIMUM, starts)
            steps = descent.steps_to(NEAR_THE_MINIMUM).reshape(num_copies, -1)
            yield f"| {name} | {' | '.join(_spread(column[column >= 0]) for column in steps.T)} |"


def _spread(steps: NDArray[np.int64]) -> str:
    if not len(steps):
        return "0"
    return f"{len(steps)}: {steps.min()}, {np.median(steps):.0f}, {steps.max()}"


def plot(descents: dict[str, toy.Descent], path: Path) -> None:
    """A panel per method: the paths, dark to light, from the dots over the mean loss, whose minimum is the star."""
    figure = Figure(figsize=(3.4 * len(descents), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(descents), sharey=True, squeeze=False)[0]
    for axes, (name, descent) in zip(panels, descents.items(), strict=True):
        _plot_landscape(axes)
        _plot_paths(axes, descent)
        num_arrived = int((descent.steps_to(NEAR_THE_MINIMUM) >= 0).sum())
        axes.set(title=f"{name}: {num_arrived} of {len(toy.STARTS)} arrive", xlabel="$x_1$")
    panels[0].set_ylabel("$x_2$")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _plot_landscape(axes: Axes) -> None:
    line = np.linspace(-10, 10, 201)
    x1, x2 = np.meshgrid(line, line)
    losses, _ = toy.losses_and_gradients(np.stack([x1.ravel(), x2.ravel()], axis=1))
    mean = losses.mean(axis=0).reshape(x1.shape)
    axes.contour(x1, x2, mean, levels=20, colors="0.7", linestyles="solid", linewidths=0.5)
    lowest = np.unravel_index(mean.argmin(), mean.shape)
    axes.plot(x1[lowest], x2[lowest], marker="*", color="crimson", markersize=14, linestyle="none", zorder=3)


def _plot_paths(axes: Axes, descent: toy.Descent) -> None:
    shown = np.unique(np.linspace(0, len(descent.points) - 1, 300).astype(int))
    colors = colormaps["viridis"](shown / max(shown[-1], 1))
    for start in range(descent.points.shape[1]):
        path = descent.points[shown, start]
        axes.scatter(path[:, 0], path[:, 1], c=colors, s=4)
        axes.plot(*path[0], marker="o", color="black", linestyle="none")


def check_cagrad(num_grams: int) -> float:
    """Largest difference between the closed form's coefficients and those of torchjd's CAGrad on random gradients."""
    jacobians = np.random.default_rng(0).normal(size=(num_grams, 2, 2))
    jacobians[:, 0] *= 0.1
    grams = jacobians @ jacobians.swapaxes(1, 2)
    weighting = CAGradWeighting(c=C, norm_eps=NORM_EPSILON)
    expected = np.stack([weighting(gram).numpy() for gram in torch.from_numpy(grams)])
    return float(np.abs(cagrad(grams) - expected).max())


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=toy.NUM_STEPS)
    parser.add_argument("--c", type=float, default=C, help="ConicGrad's smallest cosine to the mean gradient")
    parser.add_argument("--copies", type=int, metavar="N", help="only the spread of steps over N copies of each start")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--check", action="store_true", help="only compare the closed form of CAGrad with torchjd's")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    arguments = parse_arguments(words)
    if arguments.check:
        print(f"CAGrad, closed form against torchjd's: coefficients differ by at most {check_cagrad(1000):.1e}")
        return
    if arguments.copies is not None:
        print(*spread_table(arguments.copies, arguments.c, arguments.num_steps), sep="\n")
        return
    descents = {name: toy.descend(combine, arguments.num_steps) for name, combine in methods(arguments.c).items()}
    print(*table(descents), sep="\n")
    if arguments.plot is not None:
        plot(descents, arguments.plot)


if __name__ == "__main__":
    main()
