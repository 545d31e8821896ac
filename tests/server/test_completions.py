"""`/v1/completions` on a fake engine: every kind of prompt, indices, echo, streams, errors."""

import asyncio
from typing import Any

import httpx
import pytest

from glass_core.text import TextProcessor
from tests.fakes_engine import FakeEngineClient
from tests.server.conftest import ANSWER
from tests.server.wire import COMPLETIONS, error_of, events

BODY: dict[str, Any] = {"model": "tiny", "max_tokens": 50}


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("ab", 1), (["ab"], 1), (["ab", "c"], 2), ([5, 6], 1), ([[5, 6], [7]], 2)],
)
async def test_every_kind_of_prompt(
    client: httpx.AsyncClient, engine: FakeEngineClient, text: TextProcessor, prompt: Any, num_prompts: int
) -> None:
    body = (await client.post(COMPLETIONS, json={**BODY, "prompt": prompt})).json()
    assert body["object"] == "text_completion"
    assert [choice["index"] for choice in body["choices"]] == list(range(num_prompts))
    assert {choice["text"] for choice in body["choices"]} == {ANSWER}
    items = (
        prompt if isinstance(prompt[0], list) or (isinstance(prompt, list) and isinstance(prompt[0], str)) else [prompt]
    )
    expected = [tuple(text.encode_prompt(item) if isinstance(item, str) else item) for item in items]
    assert [request.prompt_token_ids for request in engine.requests] == expected
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert body["usage"]["completion_tokens"] == num_prompts * (len(ANSWER.encode()) + 1)


async def test_the_default_limit_is_openais(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    body = (await client.post(COMPLETIONS, json={"prompt": "a"})).json()
    assert engine.requests[0].sampling.max_tokens == 16
    assert body["choices"][0]["finish_reason"] == "length"


async def test_choices_are_numbered_prompt_by_prompt(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    body = (
        await client.post(COMPLETIONS, json={**BODY, "prompt": ["a", "bb"], "n": 2, "seed": 1, "echo": True})
    ).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"].removesuffix(ANSWER) for choice in body["choices"]] == ["a", "a", "bb", "bb"]
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[:2] == seeds[2:], "a prompt gets the seeds it would get alone"
    assert body["usage"]["prompt_tokens"] == 3


async def test_echo_of_token_ids_is_their_text(client: httpx.AsyncClient, text: TextProcessor) -> None:
    body = (await client.post(COMPLETIONS, json={**BODY, "prompt": text.encode("xyz"), "echo": True})).json()
    assert body["choices"][0]["text"] == "xyz" + ANSWER


async def test_a_stream_interleaves_prompts(client: httpx.AsyncClient) -> None:
    body = {**BODY, "prompt": ["a", "b"], "stream": True, "echo": True, "stream_options": {"include_usage": True}}
    chunks = events((await client.post(COMPLETIONS, json=body)).text)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for index, prompt in enumerate("ab"):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(choice["text"] for choice in choices) == prompt + ANSWER
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 2
    assert "glass" in chunks[-1]


async def test_a_stream_without_echo_has_no_empty_first_chunk(client: httpx.AsyncClient) -> None:
    chunks = events((await client.post(COMPLETIONS, json={**BODY, "prompt": "a", "stream": True})).text)
    assert chunks[0]["choices"][0]["text"] == ANSWER[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [[1], [2**80]]}, "prompt"),
        ({"prompt": ["a", "\ud800"]}, "prompt[1]"),
        ({"prompt": ["a"] * 4}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 3}, "n"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "echo together with logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, engine: FakeEngineClient, fields: dict[str, Any], param: str
) -> None:
    import json

    content = json.dumps({**BODY, **fields})
    response = await client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert not engine.requests


async def test_a_missing_prompt_is_named(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post(COMPLETIONS, json=BODY))
    assert error["param"] == "prompt"
    assert "required" in error["message"]


async def test_a_prompt_over_the_context_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post(COMPLETIONS, json={**BODY, "prompt": "x" * 300})
    assert error_of(response)["code"] == "context_length_exceeded"
    assert error_of(response)["param"] == "prompt"


async def test_a_silent_stream_is_kept_alive(engine: FakeEngineClient, text: TextProcessor) -> None:
    from server.app import create_app
    from server.config import Settings

    engine.gate = asyncio.Event()
    app = create_app(Settings(model="tiny", keepalive_seconds=0.02), engine, text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        asyncio.get_running_loop().call_later(0.2, engine.gate.set)
        response = await client.post(COMPLETIONS, json={**BODY, "prompt": "a", "stream": True})
    assert response.text.startswith(": ping\n\n: ping\n\n")
    assert events(response.text)
