"""ConicGrad as an aggregator of torchjd, beside the library's own (CAGrad, UPGrad, ...). Its formulas are in `cone`."""

from typing import Any, cast

import torch
from torch import Tensor
from torchjd import Stateful
from torchjd.aggregation import GramianWeightedAggregator, Weighting
from torchjd.linalg import Matrix, PSDMatrix

from glass_core.offline.tune.cone import ConicCombination, smallest_share

DEFAULT_C = 0.5
DEFAULT_WEIGHT_STEP = 1e-3


class ConicGradWeighting(Weighting[PSDMatrix], Stateful):
    """Coefficients of ConicGrad's direction from the gradients' Gramian, shape (K, K); each call moves its weights.

    `c` is the smallest cosine to the mean gradient, `weight_step` the step on the logits of the objectives' weights.
    The state is in `state_dict()`. Raises ValueError for a Gramian that is not square, not finite, or of another number
    of objectives than before. The K x K arithmetic is done in float64 on the CPU.
    """

    def __init__(self, c: float = DEFAULT_C, weight_step: float = DEFAULT_WEIGHT_STEP) -> None:
        super().__init__()
        self._combination = ConicCombination(c, weight_step)

    @property
    def dual(self) -> Tensor:
        """Logits of the objectives' weights, shape (K,), float64; empty before the first call."""
        dual = self._combination.dual
        return torch.empty(0, dtype=torch.float64) if dual is None else torch.from_numpy(dual.copy())

    def reset(self) -> None:
        self._combination.reset()

    def forward(self, gramian: PSDMatrix, /) -> Tensor:
        if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1] or not gramian.numel():
            raise ValueError(f"gramian: shape {tuple(gramian.shape)}; expected (K, K)")
        if not gramian.isfinite().all():
            raise ValueError("gramian: not finite; expected gradients without NaN whose squares do not overflow")
        share = smallest_share(torch.finfo(gramian.dtype).eps)
        coefficients = self._combination.coefficients(gramian.detach().to("cpu", torch.float64).numpy(), share)
        return torch.from_numpy(coefficients).to(gramian)

    def get_extra_state(self) -> Tensor:
        return self.dual

    def set_extra_state(self, state: Any) -> None:
        self._combination.dual = state.numpy().copy() if state.numel() else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(c={self._combination.min_cosine}, weight_step={self._combination.weight_step})"


class ConicGrad(GramianWeightedAggregator, Stateful):
    """ConicGrad (arXiv 2502.00217): a Jacobian, shape (K, n), one gradient a row, to a direction, shape (n,).

    The direction is as long as the mean gradient and at most arccos(c) away from it. Parameters, state and errors are
    those of `ConicGradWeighting`. Not differentiable. Computed in float64, because gradients that conflict cancel.
    """

    gramian_weighting: ConicGradWeighting

    def __init__(self, c: float = DEFAULT_C, weight_step: float = DEFAULT_WEIGHT_STEP) -> None:
        super().__init__(ConicGradWeighting(c, weight_step))

    def reset(self) -> None:
        self.gramian_weighting.reset()

    def forward(self, matrix: Matrix, /) -> Tensor:
        with torch.no_grad():
            return super().forward(cast(Matrix, matrix.double())).to(matrix.dtype)

    def __repr__(self) -> str:
        return repr(self.gramian_weighting).replace("ConicGradWeighting", type(self).__name__)
