"""How a step fails: for all of its requests, or for those whose own row has no token."""

from collections.abc import Mapping

from glass_core.errors import EngineFailureError

STEP_FAILED = "the engine failed while computing this request; it cannot be finished"


class StepFailedError(EngineFailureError):
    """A step failed for the named requests. They are gone from the engine, their memory is free; the others go on.

    `messages` tell each request's client why.
    """

    def __init__(self, messages: Mapping[str, str]) -> None:
        super().__init__(STEP_FAILED)
        self.messages = dict(messages)

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(self.messages)


class RowFailedError(EngineFailureError):
    """The runner could not draw a token for one row. Its message is the runner's, fit for clients."""
