"""The descent on static lambdas and budgets: Adam along the combined direction of all objectives, with stopping.

A step sees one text of every domain at every sparsity. Adam's second moment is one number for all lambdas and one for
all budgets: with one per parameter, layers whose gradients are mostly noise would move as far as those that matter.

The state between two steps is plain numbers, so that it can be stored exactly: a resumed run gives the same bits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch

from glass_core.offline.progress import Progress
from glass_core.offline.tune.aggregators import Combination
from glass_core.offline.tune.held_out import HeldOut, improvement
from glass_core.offline.tune.offsets import FloatArray
from glass_core.offline.tune.settings import TuningSettings
from glass_core.offline.tune.static_masks import hard_masks, parameter_gradients
from glass_core.offline.tune.static_objectives import StaticBatch
from glass_core.offline.tune.static_profile import profile_of
from glass_core.offline.tune.workfolder import TuningFolder
from glass_core.sparsity.budget import Profile

_STATE = "static"
# of the moments of Adam (arXiv 1412.6980)
_BETAS = (0.9, 0.95)
_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class StaticEvaluation:
    """After `num_steps` steps: KL (num_sparsities, num_texts) on the stopping text, improvement over the first one."""

    num_steps: int
    kl: list[list[float]]
    improvement: float


@dataclass(slots=True)
class StaticState:
    """A search between two steps. `mean` and `square`: Adam's moments; `losses`: KL by step, sparsity and domain;
    `best`: the parameters of the best evaluation so far, None for those of the start."""

    parameters: FloatArray
    mean: FloatArray
    square: FloatArray
    aggregator: list[float] = field(default_factory=list)
    num_steps: int = 0
    losses: list[list[list[float]]] = field(default_factory=list)
    evaluations: list[StaticEvaluation] = field(default_factory=list)
    best: FloatArray | None = None

    @classmethod
    def begin(cls, parameters: FloatArray) -> Self:
        return cls(parameters, np.zeros_like(parameters), np.zeros((len(parameters), 1)))

    @property
    def num_best_steps(self) -> int:
        """Steps after which the best evaluation was made."""
        return max(self.evaluations, key=lambda item: item.improvement).num_steps

    def to_json_object(self) -> dict[str, Any]:
        raw = asdict(self)
        return raw | {name: raw[name] if raw[name] is None else raw[name].tolist() for name in _ARRAYS}

    @classmethod
    def from_json_object(cls, raw: dict[str, Any]) -> Self:
        arrays = {name: raw[name] if raw[name] is None else np.array(raw[name]) for name in _ARRAYS}
        evaluations = [StaticEvaluation(**item) for item in raw["evaluations"]]
        return cls(**raw | arrays | {"evaluations": evaluations})


_ARRAYS = ("parameters", "mean", "square", "best")


def static_kl(batches: Sequence[StaticBatch], profile: Profile, sparsities: Sequence[float]) -> HeldOut:
    """Of every text under the masks that a server chooses at every sparsity."""
    kl = [batch.measure(all_masks(batch, profile, sparsities)).numpy() for batch in batches]
    num_tokens = np.concatenate([batch.num_tokens for batch in batches])
    values = np.concatenate(kl, axis=1)
    return HeldOut(values, num_tokens, np.zeros_like(values))


def all_masks(batch: StaticBatch, profile: Profile, sparsities: Sequence[float]) -> list[torch.Tensor]:
    """Hard masks (num_texts, num_layers, m) of a batch at each sparsity."""
    return [
        torch.stack([hard_masks(text.pair, profile, 1.0 - sparsity) for text in batch.texts]) for sparsity in sparsities
    ]


@dataclass(frozen=True, slots=True)
class StaticSearch:
    """What a search runs on: batches of one text of every domain to learn from, in turn; batches to stop by."""

    learning: Sequence[StaticBatch]
    stopping: Sequence[StaticBatch]
    settings: TuningSettings

    def run(self, start: FloatArray, folder: TuningFolder, progress: Progress) -> StaticState:
        """From where the folder's state is to the end, stored after every step."""
        state = StaticState.from_json_object(folder.json(_STATE, lambda: self._begin(start).to_json_object()))
        with progress.task("tuning budgets and lambdas", self.settings.static.num_steps) as advance:
            for _ in range(state.num_steps):
                advance()
            while not self._is_over(state):
                self.step(state)
                if self._is_due(state.num_steps):
                    self._evaluate(state)
                folder.store_json(_STATE, state.to_json_object())
                advance()
        return state

    def step(self, state: StaticState) -> None:
        """Gradients of log KL at every sparsity on the next batch, one direction, one move."""
        rate, temperature = self.settings.static.at(state.num_steps)
        kl, jacobian = self._differentiate(state, temperature)
        combination = Combination(self.settings.aggregator, state.aggregator)
        direction = combination.combine(jacobian.reshape(len(jacobian), -1)).reshape(state.parameters.shape)
        state.aggregator = combination.state
        state.losses.append(kl)
        state.num_steps += 1
        state.parameters = state.parameters - rate * _adam(state, direction)

    def _begin(self, start: FloatArray) -> StaticState:
        state = StaticState.begin(start)
        self._evaluate(state)
        return state

    def _is_due(self, num_steps: int) -> bool:
        static = self.settings.static
        return num_steps % static.evaluate_every == 0 or num_steps == static.num_steps

    def _is_over(self, state: StaticState) -> bool:
        static = self.settings.static
        waited = state.evaluations[-1].num_steps - state.num_best_steps
        return state.num_steps >= static.num_steps or waited >= static.patience * static.evaluate_every

    def _differentiate(self, state: StaticState, temperature: float) -> tuple[list[list[float]], FloatArray]:
        """KL by sparsity and domain, and the gradients of their logarithms (objectives, 2, num_layers)."""
        batch, sparsities = self.learning[state.num_steps % len(self.learning)], self.settings.sparsities
        values, rows = [], []
        found = batch.differentiate(all_masks(batch, profile_of(state.parameters), sparsities))
        for sparsity, (kl, gradients) in zip(sparsities, found, strict=True):
            values.append(kl.tolist())
            for text, own, worth in zip(batch.texts, kl.tolist(), gradients, strict=True):
                slopes = parameter_gradients(worth, text.pair, state.parameters, 1.0 - sparsity, temperature)
                rows.append(slopes / max(own, _EPSILON))
        return values, np.stack(rows)

    def _evaluate(self, state: StaticState) -> None:
        found = static_kl(self.stopping, profile_of(state.parameters), self.settings.sparsities)
        earlier = state.evaluations
        first = HeldOut(np.array(earlier[0].kl), found.num_tokens, found.shifts) if earlier else found
        gain = improvement(found, first)
        if earlier and gain > max(item.improvement for item in earlier):
            state.best = state.parameters
        earlier.append(StaticEvaluation(state.num_steps, found.kl.tolist(), gain))


def _adam(state: StaticState, gradient: FloatArray) -> FloatArray:
    """What to subtract, for a rate of 1, after `state.num_steps` gradients with this one."""
    first, second = _BETAS
    state.mean = first * state.mean + (1.0 - first) * gradient
    square = np.square(gradient).mean(axis=1, keepdims=True)
    state.square = second * state.square + (1.0 - second) * square
    mean = state.mean / (1.0 - first**state.num_steps)
    change: FloatArray = mean / (np.sqrt(state.square / (1.0 - second**state.num_steps)) + _EPSILON)
    return change
