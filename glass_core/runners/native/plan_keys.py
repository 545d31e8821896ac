"""Which key of the extension's plan store belongs to which sequence's plan."""

from glass_core.errors import EngineFailureError
from glass_core.models.spec import ModelSpec
from glass_core.runners.checks import plan_problem
from glass_core.runners.native.types import NativeModel
from glass_core.sparsity.plan import SparsityPlan


class PlanKeys:
    """Registers a plan when it is first seen and forgets it when its sequence is released."""

    def __init__(self, model: NativeModel | None, spec: ModelSpec) -> None:
        """Without a model there is nothing to register with: only `release` works."""
        self._model = model
        self._spec = spec
        self._keys: dict[str, tuple[SparsityPlan, int]] = {}
        self._next = 0

    def key(self, sequence_id: str, plan: SparsityPlan) -> int:
        """The plan's key. Raises EngineFailureError for a plan that is not one of this model's."""
        known = self._keys.get(sequence_id)
        if known is not None and known[0] is plan:
            return known[1]
        self.release(sequence_id)
        return self._register(sequence_id, plan)

    def release(self, sequence_id: str) -> None:
        """Forget the sequence's plan; unknown ids are fine."""
        known = self._keys.pop(sequence_id, None)
        if known is not None and self._model is not None:
            self._model.remove_plan(known[1])

    def _register(self, sequence_id: str, plan: SparsityPlan) -> int:
        problem = plan_problem(plan, self._spec)
        if problem is not None:
            raise EngineFailureError(f"sequence {sequence_id!r}: {problem}")
        if self._model is None:
            raise EngineFailureError("the native runner is closed")
        key = self._next
        self._next = (self._next + 1) % (1 << 31)
        try:
            self._model.add_plan(key, plan.neurons)
        except ValueError as error:
            raise EngineFailureError(f"sequence {sequence_id!r}: {error}") from error
        self._keys[sequence_id] = (plan, key)
        return key
