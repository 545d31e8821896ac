"""Which key of the extension's plan store belongs to which sequence's plan, and how much work that plan is."""

from dataclasses import dataclass

from glass_core.errors import EngineFailureError
from glass_core.runners.checks import plan_shape_problem
from glass_core.runners.native.ffn_work import FfnWork, LayerReads, plan_work
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.types import NativeModel
from glass_core.sparsity.plan import SparsityPlan


@dataclass(frozen=True, slots=True)
class RegisteredPlan:
    """A plan the extension knows under `key`. `work`, per token, is counted once, because every step needs it; None of
    a refined plan, whose work differs from token to token."""

    plan: SparsityPlan
    key: int
    work: FfnWork | None


class PlanKeys:
    """Registers a plan when it is first seen and forgets it when its sequence is released."""

    def __init__(self, model: NativeModel | None, header: ImageHeader) -> None:
        """Without a model there is nothing to register with: only `release` works."""
        self._model = model
        self._spec = header.spec
        self._reads = LayerReads.of(header)
        self._registered: dict[str, RegisteredPlan] = {}
        self._next = 0

    def find(self, sequence_id: str, plan: SparsityPlan) -> RegisteredPlan:
        """The sequence's plan, registered. Raises EngineFailureError for a plan that is not one of this model's."""
        known = self._registered.get(sequence_id)
        if known is not None and known.plan is plan:
            return known
        self.release(sequence_id)
        return self._register(sequence_id, plan)

    def release(self, sequence_id: str) -> None:
        """Forget the sequence's plan; unknown ids are fine."""
        known = self._registered.pop(sequence_id, None)
        if known is not None and self._model is not None:
            self._model.remove_plan(known.key)

    def _register(self, sequence_id: str, plan: SparsityPlan) -> RegisteredPlan:
        problem = plan_shape_problem(plan, self._spec)  # the extension checks the neurons
        if problem is not None:
            raise EngineFailureError(f"sequence {sequence_id!r}: {problem}")
        if self._model is None:
            raise EngineFailureError("the native runner is closed")
        key = self._next
        self._next = (self._next + 1) % (1 << 31)
        try:
            num_groups = self._model.add_plan(key, plan.neurons, plan.refinement)
        except ValueError as error:
            raise EngineFailureError(f"sequence {sequence_id!r}: {error}") from error
        work = plan_work(self._reads, plan, num_groups) if plan.refinement is None else None
        registered = RegisteredPlan(plan, key, work)
        self._registered[sequence_id] = registered
        return registered
