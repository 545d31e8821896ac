"""How the objectives' gradients become one direction: ConicGrad, or one of torchjd's own to compare it with."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torchjd.aggregation import Aggregator, CAGrad, Mean, UPGrad

from glass_core.errors import ConfigurationError
from glass_core.offline.tune.conic_grad import ConicGrad

AGGREGATORS: Mapping[str, Callable[[], Aggregator]] = {
    "conicgrad": ConicGrad,
    "mean": Mean,
    "cagrad": lambda: CAGrad(c=0.5),
    "upgrad": UPGrad,
}


class Combination:
    """An aggregator by name, with its state as a list of numbers."""

    def __init__(self, name: str, state: list[float]) -> None:
        """Raises ConfigurationError for an unknown name, or when a package that it needs is not installed."""
        if name not in AGGREGATORS:
            raise ConfigurationError(f"aggregator must be one of {', '.join(AGGREGATORS)}, got {name!r}")
        try:
            self._aggregator = AGGREGATORS[name]()
        except ImportError as error:
            raise ConfigurationError(f"aggregator {name!r} needs a package that is not installed: {error}") from error
        if isinstance(self._aggregator, ConicGrad):
            self._aggregator.gramian_weighting.set_extra_state(torch.tensor(state, dtype=torch.float64))

    def combine(self, jacobian: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """One direction (n,) of gradients (K, n)."""
        direction: npt.NDArray[np.float64] = self._aggregator(torch.from_numpy(jacobian)).numpy()
        return direction

    @property
    def state(self) -> list[float]:
        """What must be given to the next combination so that it goes on where this one is."""
        if not isinstance(self._aggregator, ConicGrad):
            return []
        dual: list[float] = self._aggregator.gramian_weighting.dual.tolist()
        return dual
