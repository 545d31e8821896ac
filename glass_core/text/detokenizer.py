"""Token ids to text while they arrive: never half a character, never a part of a stop string.

Two stages. A decoder gives out the text that no later token can change: `IncrementalDecoder`, which decodes a short
sliding window of tokens with any tokenizer, or `byte_level.ByteLevelDecoder`. `StopFilter` looks for stop strings in
that text and holds back a tail that may still become one.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
# A UTF-8 character has at most four bytes, so at most three bytes, each a token at worst and each shown as one
# replacement character by byte-fallback decoders, wait for their last one.
MAX_INCOMPLETE = 3
CONTEXT_TOKENS = 4
WINDOW_TOKENS = 16

Decode = Callable[[Sequence[int]], str]


class Decoder(Protocol):
    """The first stage."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token, possibly empty."""
        ...

    def flush(self) -> str:
        """What was held back, once no more can come."""
        ...


class IncrementalDecoder:
    """Text of a growing token sequence, piece by piece.

    Only the last few tokens are decoded again at each step. UTF-8 synchronizes itself, so a window of
    `CONTEXT_TOKENS` earlier tokens decides every character that is still open; it also gives SentencePiece decoders
    the left context without which they drop a leading space.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context[-CONTEXT_TOKENS:])
        self._emitted = len(decode(self._window)) if self._window else 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token, possibly empty."""
        self._window.append(token_id)
        text = self._decode(self._window)
        held = _trailing_replacements(text)
        piece = self._take(text, len(text) - held)
        if len(self._window) > WINDOW_TOKENS:
            self._window = self._window[-CONTEXT_TOKENS:]
            self._emitted = len(self._decode(self._window)) - held
        return piece

    def flush(self) -> str:
        """What was held back: the bytes of a character that never became whole, as replacement characters."""
        text = self._decode(self._window) if self._window else ""
        return self._take(text, len(text))

    def _take(self, text: str, end: int) -> str:
        piece = text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return piece


class StopFilter:
    """Passes text through until a stop string is complete.

    The stop string that is complete first wins (of two complete at the same character, the one that began first);
    the text ends just before it. So the result depends on the text alone, not on how it was cut into tokens.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._pending = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of all text so far that can neither be, nor turn out to be, in a stop string."""
        if self.stopped:
            return ""
        if not self._stop:
            return text
        self._pending += text
        cut = self._first_stop()
        if cut is not None:
            self.stopped = True
        else:
            cut = len(self._pending) - self._num_held()
        piece, self._pending = self._pending[:cut], self._pending[cut:]
        return piece

    def flush(self) -> str:
        """The text held back, once no more can come. Empty after a stop."""
        piece = "" if self.stopped else self._pending
        self._pending = ""
        return piece

    def _first_stop(self) -> int | None:
        found = [(start + len(stop), start) for stop in self._stop if (start := self._pending.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _num_held(self) -> int:
        """Length of the longest tail that is the beginning of a stop string."""
        return max((_overlap(self._pending, stop) for stop in self._stop), default=0)


class Detokenizer:
    """Incremental detokenizer of one answer. Special tokens are left out of the text."""

    def __init__(self, decoder: Decoder, stop: Sequence[str], skipped_token_ids: frozenset[int]) -> None:
        self._decoder = decoder
        self._filter = StopFilter(stop)
        self._skipped = skipped_token_ids
        self.num_decoded = 0
        """Characters decoded so far, with those held back for a stop string."""

    @property
    def stopped(self) -> bool:
        """A stop string was found: the text is complete and every later token is ignored."""
        return self._filter.stopped

    def push(self, token_id: int) -> str:
        """The text this token adds, possibly empty."""
        if self.stopped or token_id in self._skipped:
            return ""
        text = self._decoder.push(token_id)
        self.num_decoded += len(text)
        return self._filter.push(text)

    def flush(self) -> str:
        """The rest of the text after the last token."""
        if self.stopped:
            return ""
        return self._filter.push(self._decoder.flush()) + self._filter.flush()


def _trailing_replacements(text: str) -> int:
    return min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_INCOMPLETE)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
