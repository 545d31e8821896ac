"""Which neurons a prompt keeps under given parameters, and the slopes of the soft masks that stand for the hard ones.

A soft mask is sigma((score_j - tau_l) / T): score = (1 - lambda_l) r_L + lambda_l r_G of ranks scaled to 0 … 1, tau_l
such that the masks of layer l sum to its budget. Differentiating that condition, a neuron's mask moves with lambda_l by
kappa_j (delta_j - mean of delta), delta = r_G - r_L, and with the budget by kappa_j / sum(kappa), where kappa is the
derivative of sigma and the mean is weighted by it. Losses are of hard masks, those that a server chooses.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glass_core.offline.tune.offsets import FloatArray
from glass_core.offline.tune.static_profile import lambdas_of, soft_budgets
from glass_core.sparsity.budget import Profile, layer_budgets
from glass_core.sparsity.ranking import Ranks, fuse, top_k
from glass_core.sparsity.selection import DEFAULT_LAMBDA

_NUM_BISECTIONS = 24
_FARTHEST = 40.0
"""temperatures beyond the scores' range within which tau is searched"""


@dataclass(frozen=True, slots=True, eq=False)
class RankPair:
    """Ranks (num_layers, m) of a prompt's own statistic and of the model's."""

    prompt: Ranks
    model: Ranks


def hard_masks(pair: RankPair, profile: Profile, density: float) -> Tensor:
    """The neurons that `PlanSelector` keeps under a profile: (num_layers, m) bool."""
    lambdas = profile.lambdas or (DEFAULT_LAMBDA,) * profile.num_layers
    kept = top_k(fuse(pair.prompt, pair.model, lambdas), layer_budgets(density, profile, pair.prompt.shape[1]))
    masks = torch.zeros(pair.prompt.shape, dtype=torch.bool)
    for row, neurons in zip(masks, kept, strict=True):
        row[torch.from_numpy(neurons.astype(np.int64))] = True
    return masks


@dataclass(frozen=True, slots=True, eq=False)
class SoftMasks:
    """`values` (num_layers, m) within 0 … 1, and their derivatives by lambda and by the budget of their layer."""

    values: Tensor
    by_lambda: Tensor
    by_budget: Tensor


def soft_masks(pair: RankPair, parameters: FloatArray, budgets: FloatArray, temperature: float) -> SoftMasks:
    """At lambdas of the parameters and real budgets (num_layers,), each within (0, m)."""
    scale = 1.0 / max(pair.prompt.shape[1] - 1, 1)
    local, global_ = (torch.from_numpy(side * np.float32(scale)) for side in (pair.prompt, pair.model))
    difference = global_ - local
    scores = local + torch.from_numpy(lambdas_of(parameters)).float()[:, None] * difference
    values = torch.sigmoid((scores - _thresholds(scores, budgets, temperature)) / temperature)
    kernel = values * (1.0 - values) / temperature
    by_budget = kernel / kernel.sum(dim=1, keepdim=True).clamp(min=torch.finfo(kernel.dtype).tiny)
    return SoftMasks(values, kernel * (difference - (by_budget * difference).sum(dim=1, keepdim=True)), by_budget)


def parameter_gradients(
    mask_gradients: Tensor, pair: RankPair, parameters: FloatArray, density: float, temperature: float
) -> FloatArray:
    """Gradients (2, num_layers) on the parameters, of gradients (num_layers, m) on the masks."""
    budgets, budget_slopes = soft_budgets(parameters, density, pair.prompt.shape[1])
    masks = soft_masks(pair, parameters, budgets, temperature)
    on_lambda, on_budget = (
        (mask_gradients * slopes).sum(dim=1).double().numpy() for slopes in (masks.by_lambda, masks.by_budget)
    )
    lambdas = lambdas_of(parameters)
    return np.stack([on_lambda * lambdas * (1.0 - lambdas), on_budget @ budget_slopes])


def _thresholds(scores: Tensor, budgets: FloatArray, temperature: float) -> Tensor:
    """tau (num_layers, 1) at which the soft masks sum to the budgets, by bisection."""
    wanted = torch.from_numpy(budgets).to(scores.dtype)[:, None]
    low = torch.full_like(wanted, -_FARTHEST * temperature)
    high = torch.full_like(wanted, 1.0 + _FARTHEST * temperature)
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2.0
        too_many = torch.sigmoid((scores - middle) / temperature).sum(dim=1, keepdim=True) > wanted
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (low + high) / 2.0
