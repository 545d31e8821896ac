"""From stamped bytes to an answer: HTTP/1.1 framing (RFC 9112), server-sent events, OpenAI's completion chunks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from glass_core.offline.bench.load.exchange import Exchange

_DONE = "[DONE]"
_OK = 200
_MAX_MESSAGE = 300


class BadAnswerError(Exception):
    """The server's answer is not the stream that was asked for."""


@dataclass(slots=True)
class Answer:
    """One request's outcome in seconds after it was due. `text_times`: arrival of every chunk that carries text."""

    lag: float
    text_times: list[float] = field(default_factory=list)
    end: float = 0.0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    effective_sparsity: float | None = None
    finished: bool = False
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to the first text."""
        return self.text_times[0]

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None for answers of one token."""
        if self.num_tokens < 2:
            return None
        return (self.text_times[-1] - self.text_times[0]) / (self.num_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Times between consecutive chunks of text: the inter-token latencies a reader sees."""
        return [after - before for before, after in zip(self.text_times, self.text_times[1:], strict=False)]


def read_answer(exchange: Exchange) -> Answer:
    """Parse what came. Never raises: an answer that cannot be used has `error` set."""
    answer = Answer(lag=exchange.sent - exchange.due, error=exchange.error)
    if exchange.error is not None:
        return answer
    try:
        for moment, data in _events(exchange.pieces):
            _read_event(answer, moment - exchange.due, data)
        _check(answer)
    except (BadAnswerError, ValueError, KeyError, TypeError, AttributeError, LookupError) as error:
        answer.error = f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
    return answer


def _check(answer: Answer) -> None:
    if not answer.finished:
        raise BadAnswerError("the stream ended without a finish reason")
    if not answer.text_times:
        raise BadAnswerError("the stream carried no text")
    if not answer.num_tokens:  # a server that counts nothing sends one token a chunk
        answer.num_tokens = len(answer.text_times)


def _read_event(answer: Answer, moment: float, data: str) -> None:
    if data == _DONE:
        return
    chunk = json.loads(data)
    if "error" in chunk:
        raise BadAnswerError(f"error in the stream: {chunk['error']}")
    for choice in chunk.get("choices") or ():
        if _text(choice):
            answer.text_times.append(moment)
        if choice.get("finish_reason"):
            answer.finished = True
    _read_counts(answer, chunk)
    answer.end = moment


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    return (delta.get("content") if isinstance(delta, dict) else choice.get("text")) or ""


def _read_counts(answer: Answer, chunk: dict[str, Any]) -> None:
    if usage := chunk.get("usage"):
        answer.num_prompt_tokens = int(usage["prompt_tokens"])
        answer.num_tokens = int(usage["completion_tokens"])
    if report := chunk.get("glass"):
        answer.effective_sparsity = float(report["sparsity"])


def _events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, str]]:
    """(arrival, data) of every complete server-sent event."""
    buffer = b""
    for moment, body in _bodies(pieces):
        buffer += body.replace(b"\r\n", b"\n")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            lines = [line[5:].strip() for line in event.decode().split("\n") if line.startswith("data:")]
            if lines:
                yield moment, "\n".join(lines)


def _bodies(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(arrival, body bytes) behind the head of the answer, without its framing."""
    head, decoder = b"", None
    for moment, piece in pieces:
        if decoder is not None:
            yield moment, decoder.feed(piece)
            continue
        head += piece
        if b"\r\n\r\n" in head:
            text, rest = head.split(b"\r\n\r\n", maxsplit=1)
            whole = rest + b"".join(data for _, data in pieces)[len(head) :]
            decoder = _decoder(text.decode("latin-1"), whole)
            yield moment, decoder.feed(rest)


def _decoder(head: str, whole: bytes) -> "_Plain | _Chunked":
    """The framing the head announces; `whole` is everything behind the head, for the message of a refusal."""
    status_line, *lines = head.split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    decoder = _Chunked() if headers.get("transfer-encoding", "").lower() == "chunked" else _Plain()
    status = int(status_line.split(" ")[1])
    if status != _OK:
        raise BadAnswerError(f"HTTP {status}: {decoder.feed(whole).decode('utf-8', 'replace')}")
    return decoder


class _Plain:
    """A body that ends with the connection."""

    def feed(self, data: bytes) -> bytes:
        return data


class _Chunked:
    """Transfer-Encoding: chunked, in pieces cut anywhere (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0  # bytes of the current chunk still to come, its closing CRLF included
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        body = []
        while self._buffer and not self._ended:
            if not self._left and not self._begin_chunk():
                break
            body.append(self._take())
        return b"".join(body)

    def _begin_chunk(self) -> bool:
        """Read a chunk's size line; False when it is not complete yet."""
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        size = int(line.split(b";")[0], 16)
        self._buffer, self._left, self._ended = rest, size + 2, size == 0
        return True

    def _take(self) -> bytes:
        if self._ended:
            return b""
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        # the last two bytes of a chunk are its closing CRLF
        closing = max(0, 2 - self._left)
        return piece[: len(piece) - closing] if closing else piece
