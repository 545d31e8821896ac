"""Every error glass raises on purpose.

    GlassError
    ├── ConfigurationError            a setting is out of range or two settings contradict each other
    ├── ModelError
    │   ├── ModelNotFoundError        neither a pulled name nor a path
    │   ├── UnsupportedModelError     an architecture or a config feature we do not implement
    │   └── CheckpointError           a truncated, malformed or unsafe (pickle) file
    ├── ArtifactError                 a global-statistics artifact cannot be read
    │   ├── ArtifactMismatchError     it was made for another model
    │   └── MissingStatisticsError    it lacks what the requested method or profile needs
    ├── InvalidRequestError           the caller's request is wrong; carries the field
    │   └── ContextLengthError        prompt + max_tokens do not fit the context
    └── EngineError
        ├── QueueFullError            try again later; carries retry_after_seconds
        ├── EngineUnavailableError    loading, draining or dead
        └── EngineFailureError        a step failed; this request cannot be finished

The server maps each to an HTTP status once, in `server/errors.py`.
"""


class GlassError(Exception):
    """Base of every intentional error."""


class ConfigurationError(GlassError):
    """A setting is out of range or contradicts another."""


class ModelError(GlassError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError):
    """The given name is neither a pulled model nor an existing path."""


class UnsupportedModelError(ModelError):
    """The model needs an architecture or a feature that is not implemented; the message names it."""


class CheckpointError(ModelError):
    """A checkpoint file is truncated, malformed or of an unsafe format."""


class ArtifactError(GlassError):
    """A global-statistics artifact cannot be read."""


class ArtifactMismatchError(ArtifactError):
    """The artifact was measured on another model; the message gives both fingerprints."""


class MissingStatisticsError(ArtifactError):
    """The artifact lacks the statistics a method or profile needs; the message says which calibration makes them.

    `param` names the request field that asked for it.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(GlassError):
    """The request is wrong. `param` is the path of the offending field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """Prompt plus requested completion exceed the context."""


class EngineError(GlassError):
    """The engine cannot serve the request."""


class QueueFullError(EngineError):
    """The waiting queue is full."""

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineUnavailableError(EngineError):
    """The engine is loading, draining or dead."""


class EngineFailureError(EngineError):
    """A step of the engine failed; the request ends with this error."""
