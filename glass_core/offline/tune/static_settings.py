"""How static lambdas and budgets are searched for."""

from dataclasses import dataclass

from glass_core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """`rate`: Adam's first, which falls to zero over `num_steps`; `temperatures` of the soft masks at the first and the
    last step, in shares of the range of ranks. Every `evaluate_every` steps the text to stop by is measured; `patience`
    measurements without a new best end the run."""

    num_steps: int = 30
    rate: float = 0.1
    temperatures: tuple[float, float] = (0.1, 0.03)
    evaluate_every: int = 10
    patience: int = 2

    def __post_init__(self) -> None:
        for name in ("num_steps", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"static {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.rate <= 1 or not all(0 < value <= 1 for value in self.temperatures):
            raise ConfigurationError(f"static rate and temperatures must lie in (0, 1], got {self}")

    def at(self, num_steps: int) -> tuple[float, float]:
        """Rate and temperature of the step after so many."""
        share, (first, last) = num_steps / self.num_steps, self.temperatures
        return self.rate * (1.0 - share), first * (last / first) ** share
