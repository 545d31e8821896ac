"""What a tuning run is asked for. Two runs with equal settings on equal weights and artifacts make equal tables."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from glass_core.errors import ConfigurationError
from glass_core.offline.tune.static_settings import StaticSettings

# Work folders of another format are not resumed: raise it whenever a partial result changes its meaning.
_WORK_FORMAT = 5
_MIN_ANSWER_TOKENS = 4


# Width of the kernel that stands for the derivative of a threshold's step, in units of the threshold's logarithm.
KERNEL_WIDTH = 0.25


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How much text every domain gets: to learn from, to stop by, and to decide by at the end.

    `message_length`, `answer_length`: tokens at most of what the model writes as the user, and as itself.
    """

    seed: int = 0
    num_learning: int = 10
    num_stopping: int = 3
    num_deciding: int = 8
    message_length: int = 48
    answer_length: int = 96

    def __post_init__(self) -> None:
        for name in ("num_learning", "num_stopping", "num_deciding", "message_length"):
            _at_least(name, getattr(self, name), 1)
        _at_least("answer_length", self.answer_length, _MIN_ANSWER_TOKENS)

    @property
    def num_per_domain(self) -> int:
        return self.num_learning + self.num_stopping + self.num_deciding


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """`sparsities` ascend; `rate` is the share of a Newton step that is taken. Every `evaluate_every` steps the text to
    stop by is measured; `patience` measurements without a new best end the run. `static`: of the search for static
    budgets and lambdas, which shares the texts, the sparsities and the aggregator."""

    text: TextSettings = field(default_factory=TextSettings)
    sparsities: tuple[float, ...] = (0.2, 0.35, 0.5)
    aggregator: str = "conicgrad"
    num_steps: int = 2
    rate: float = 0.3
    evaluate_every: int = 1
    patience: int = 2
    static: StaticSettings = field(default_factory=StaticSettings)

    def __post_init__(self) -> None:
        for name in ("num_steps", "evaluate_every", "patience"):
            _at_least(name, getattr(self, name), 1)
        if not 0 < self.rate <= 1:
            raise ConfigurationError(f"rate must lie in (0, 1], got {self.rate}")
        ascending = all(low < high for low, high in zip(self.sparsities, self.sparsities[1:], strict=False))
        if len(self.sparsities) < 2 or not ascending or not 0 < self.sparsities[0] <= self.sparsities[-1] < 1:
            raise ConfigurationError(f"sparsities: expected at least 2, ascending within (0, 1), got {self.sparsities}")

    def key(self, *inputs: str) -> str:
        """Identity of the run on these inputs (fingerprint, artifact): equal keys may reuse partial results."""
        parts = [_WORK_FORMAT, inputs, asdict(self)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def command(self, model_name: str) -> str:
        """The command that repeats the run."""
        sparsities = " ".join(f"{sparsity:g}" for sparsity in self.sparsities)
        return (
            f"glass tune {model_name} --seed {self.text.seed} --sparsities {sparsities} --steps {self.num_steps} "
            f"--static-steps {self.static.num_steps} --rate {self.rate:g} --aggregator {self.aggregator}"
        )


def _at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise ConfigurationError(f"{name} must be at least {smallest}, got {value}")
