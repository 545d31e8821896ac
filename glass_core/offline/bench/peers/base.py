"""What the engine-level comparison asks of a peer."""

from collections.abc import Sequence
from typing import Any, Protocol


class EnginePeer(Protocol):
    """Another engine with the same model, ready to be timed."""

    @property
    def label(self) -> str:
        """Its name in the rows."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes that run beside this one: what they use is not a disturbance."""

    def decode_speed(self, prompt: Sequence[int], *, num_tokens: int) -> float:
        """Tokens per second of decoding `num_tokens` tokens after a prompt, batch 1."""

    def prefill_speeds(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Tokens per second of processing each prompt."""

    def description(self) -> dict[str, Any]:
        """What it says about itself, for the conditions of a result."""


class StreamPeer(Protocol):
    """Something that answers many prompts at once without HTTP, ready to be timed."""

    @property
    def label(self) -> str:
        """Its name in the rows."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes that run beside this one."""

    @property
    def prunes(self) -> bool:
        """Whether it follows the sparsity it is given; one that does not is measured dense, once."""

    def stream_speed(
        self, prompts: Sequence[Sequence[int]], *, num_tokens: int, concurrency: int, sparsity: float
    ) -> float:
        """Tokens per second of all answers of `num_tokens` tokens, `concurrency` prompts at a time."""

    def peak_rss_bytes(self) -> int | None:
        """Largest resident set so far; None where it is unknown or not this side's alone."""
