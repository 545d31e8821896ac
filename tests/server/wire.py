"""Reading what the server sends: requests to repeat, events of a stream, samples of the metrics."""

import json
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def events(text: str) -> list[Any]:
    """The JSON of every `data:` event; checks that `[DONE]` is the last and that framing is exact."""
    assert text.endswith("\n\n")
    blocks = text.split("\n\n")[:-1]
    assert blocks[-1] == "data: [DONE]"
    data = [block for block in blocks[:-1] if block != ": ping"]
    assert all(block.startswith("data: ") and "\n" not in block for block in data)
    return [json.loads(block.removeprefix("data: ")) for block in data]


def chat_text(chunks: list[Any], index: int = 0) -> str:
    """Content of one choice of a streamed chat answer."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(delta.get("content", "") for delta in deltas)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error body; checks that the envelope has exactly its four keys."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def sample(metrics: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples that have these labels."""
    total = 0.0
    for line in metrics.splitlines():
        if line.startswith((f"{name} ", f"{name}{{")) and all(
            f'{key}="{value}"' in line for key, value in labels.items()
        ):
            total += float(line.rsplit(" ", 1)[1])
    return total
