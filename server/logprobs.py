"""Log-probabilities of an answer's tokens: which of them are shown, and how OpenAI's two endpoints shape them.

What a token adds to the text may be held back, half a character or the beginning of a stop string, and so is the token
then: an answer shows the tokens of its text, and with the piece of text that they end in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glass_core.api import TokenLogprobs
from glass_core.text import TextProcessor

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token of an answer's text; `offset` counts the characters of the text before it."""

    token_id: int
    offset: int
    logprobs: TokenLogprobs


@dataclass(slots=True)
class TokenLedger:
    """Tokens of one answer whose text has not been sent yet."""

    _held: list[ShownToken] = field(default_factory=list)
    _num_sent: int = 0

    def add(self, token: ShownToken) -> None:
        self._held.append(token)

    def release(self, text: str) -> tuple[ShownToken, ...]:
        """The tokens that go with the next piece of text: those that begin before its end."""
        self._num_sent += len(text)
        return self._take(sum(token.offset < self._num_sent for token in self._held)) if text else ()

    def flush(self, text: str, *, stopped: bool) -> tuple[ShownToken, ...]:
        """The tokens that go with the last piece of text; after a stop string those in or behind it are left out."""
        tokens = self.release(text)
        return tokens if stopped else tokens + self._take(len(self._held))

    def _take(self, count: int) -> tuple[ShownToken, ...]:
        taken, self._held = tuple(self._held[:count]), self._held[count:]
        return taken


def chat_logprobs(tokens: Sequence[ShownToken], text: TextProcessor) -> Json:
    """The `logprobs` object of a chat choice."""
    content = [
        {
            **_chat_entry(token.token_id, token.logprobs.logprob, text),
            "top_logprobs": [_chat_entry(token_id, logprob, text) for token_id, logprob in token.logprobs.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ShownToken], text: TextProcessor) -> Json:
    """The `logprobs` object of a text completion's choice."""
    return {
        "tokens": [_shown(text.token_bytes(token.token_id)) for token in tokens],
        "token_logprobs": [token.logprobs.logprob for token in tokens],
        "top_logprobs": [_by_text(token.logprobs, text) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _chat_entry(token_id: int, logprob: float, text: TextProcessor) -> Json:
    data = text.token_bytes(token_id)
    return {"token": _shown(data), "logprob": logprob, "bytes": list(data)}


def _by_text(logprobs: TokenLogprobs, text: TextProcessor) -> dict[str, float]:
    """Of tokens that look alike, halves of characters say, the most probable one stands for all."""
    found: dict[str, float] = {}
    for token_id, logprob in logprobs.top:
        found.setdefault(_shown(text.token_bytes(token_id)), logprob)
    return found


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "replace")
