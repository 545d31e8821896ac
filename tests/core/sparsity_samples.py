"""Small artifacts and prompt statistics for the sparsity tests."""

from collections.abc import Collection
from typing import Any

import numpy as np
from hypothesis import settings

from glass_core.api import SparsityParams
from glass_core.sparsity.artifact import ArtifactManifest, GlobalStatistics
from glass_core.sparsity.local_stats import FloatArray, LocalStatistics
from glass_core.sparsity.refinement import ScoreWeights
from glass_core.sparsity.selection import PlanSelector

# No deadline: a busy machine is not a failure.
property_test = settings(deadline=None, max_examples=60)

NUM_LAYERS = 3
NUM_NEURONS = 40
NUM_INPUTS = 24
SHAPE = (NUM_LAYERS, NUM_NEURONS)
IMPACT = ("impact_abs", "impact_rms")


def make_manifest(**changes: Any) -> ArtifactManifest:
    values: dict[str, Any] = {
        "model_name": "tiny",
        "fingerprint": "f00d",
        "num_layers": NUM_LAYERS,
        "intermediate_size": NUM_NEURONS,
        "formulas": {"activation_l1": "mean |z| / ||z||"},
        "corpus": {"source": "chat", "sampler": "chat", "seed": 0, "num_sequences": 2, "num_tokens": 64, "note": None},
        "versions": {"glass": "0.1.0"},
        "command": "glass calibrate tiny --source chat",
    }
    return ArtifactManifest(**(values | changes))


def random_scores(seed: int, shape: tuple[int, ...] = SHAPE) -> FloatArray:
    return np.random.default_rng(seed).gamma(0.3, size=shape).astype(np.float32)


def random_weights(seed: int, shape: tuple[int, int] = SHAPE, num_inputs: int = NUM_INPUTS) -> ScoreWeights:
    inputs = random_scores(seed, (shape[0], num_inputs))
    return ScoreWeights(inputs, random_scores(seed + 1, shape))


def make_statistics(*, without: Collection[str] = (), **changes: Any) -> GlobalStatistics:
    """An artifact with most tensors, `without` some of them."""
    values: dict[str, Any] = {
        "manifest": make_manifest(),
        "activation_l1": random_scores(1),
        "activation_l2": random_scores(2),
        "impact_abs": random_scores(3),
        "impact_rms": random_scores(4),
        "mean_z": random_scores(5) - random_scores(6),
        "mean_square_z": random_scores(7),
        "sensitivity": np.array([0.7, 0.03, 0.1], np.float32),
    }
    return GlobalStatistics(**({name: values[name] for name in values if name not in without} | changes))


def make_activations(seed: int, num_tokens: int = 7) -> FloatArray:
    """z (num_layers, num_tokens, m)."""
    return np.random.default_rng(seed).normal(size=(NUM_LAYERS, num_tokens, NUM_NEURONS)).astype(np.float32)


def make_local(seed: int = 0, num_tokens: int = 7) -> LocalStatistics:
    return LocalStatistics.from_activations(make_activations(seed, num_tokens))


def make_selector(statistics: GlobalStatistics | None, **changes: Any) -> PlanSelector:
    values: dict[str, Any] = {"num_layers": NUM_LAYERS, "intermediate_size": NUM_NEURONS, "statistics": statistics}
    return PlanSelector(**(values | {"magnitudes": lambda: random_scores(8)} | changes))


def sparse(**changes: Any) -> SparsityParams:
    return SparsityParams(**({"sparsity": 0.5} | changes))


def chosen(selector: PlanSelector, params: SparsityParams, local: LocalStatistics) -> list[list[int]]:
    plan = selector.select(params, local)
    assert plan is not None
    return [indices.tolist() for indices in plan.neurons]


def reference_top_k(scores: Any, budgets: tuple[int, ...]) -> list[list[int]]:
    return [
        sorted(sorted(range(len(row)), key=lambda index: (-row[index], index))[:budget])
        for row, budget in zip(scores.tolist(), budgets, strict=True)
    ]
