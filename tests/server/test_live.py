"""Over a real socket: clients that leave, the official `openai` client, a body that never ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from fastapi import FastAPI

from glass_core.errors import EngineFailureError, QueueFullError
from tests.fakes_engine import FakeEngineClient
from tests.server.conftest import ANSWER
from tests.server.live_app import serving, until
from tests.server.wire import CHAT, COMPLETIONS, HELLO, sample


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    async with serving(app) as address:
        yield address


@pytest.fixture
async def official(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def send_raw(url: str, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """POST on a connection of our own, to cut it at will."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    content = json.dumps(body).encode()
    headers = f"Host: test\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    writer.write(f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


async def metrics(url: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/metrics")).text


@pytest.mark.parametrize("gate_at", [0, 3], ids=["in the queue", "after some tokens"])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_client_that_leaves_aborts_its_sequences(
    url: str, engine: FakeEngineClient, path: str, streamed: bool, gate_at: int
) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), gate_at
    reader, writer = await send_raw(url, path, {**HELLO, "prompt": "a", "n": 2, "stream": streamed})
    await until(lambda: len(engine.running) == 2)
    if streamed and gate_at:
        assert b"200 OK" in await reader.readline()
    writer.transport.abort()
    await until(lambda: not engine.running, seconds=2)
    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.requests)
    assert sample(await metrics(url), "glass_request_success_total", finished_reason="aborted") == 2


async def test_many_dropped_streams_leave_nothing_running(url: str, engine: FakeEngineClient) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), 2

    async def drop() -> None:
        reader, writer = await send_raw(url, CHAT, {**HELLO, "stream": True})
        await reader.readline()
        writer.transport.abort()

    await asyncio.gather(*(drop() for _ in range(50)))
    await until(lambda: not engine.running, seconds=2)
    assert len(engine.aborted) == 50


async def test_a_client_that_stays_is_not_disturbed_by_one_that_leaves(url: str, engine: FakeEngineClient) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), 2
    _, leaving = await send_raw(url, CHAT, {**HELLO, "stream": True})
    async with httpx.AsyncClient() as client:
        staying = asyncio.create_task(client.post(f"{url}{CHAT}", json=HELLO))
        await until(lambda: len(engine.running) == 2)
        leaving.transport.abort()
        await until(lambda: len(engine.running) == 1)
        engine.gate.set()
        assert (await staying).json()["choices"][0]["message"]["content"] == ANSWER


async def test_a_body_over_the_limit_is_answered_before_its_end(url: str) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        "Content-Length: 999999999\r\n\r\n{".encode()
    )
    assert b"413" in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_the_official_client_gets_an_answer(official: openai.AsyncOpenAI) -> None:
    answer = await official.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        temperature=0,
        max_completion_tokens=100,
        extra_body={"glass_sparsity": 0.5, "lambda": 0.5, "glass_method": "griffin"},
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == len(ANSWER.encode()) + 1
    assert answer.model_extra is not None and answer.model_extra["glass"]["sparsity"] == 0.5
    assert answer._request_id


async def test_the_official_client_streams(official: openai.AsyncOpenAI) -> None:
    stream = await official.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
        n=2,
    )
    texts, usage = ["", ""], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [ANSWER, ANSWER]
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


async def test_the_official_client_completes_text(official: openai.AsyncOpenAI) -> None:
    answer = await official.completions.create(model="tiny", prompt=["a", "b"], max_tokens=50)
    assert [choice.text for choice in answer.choices] == [ANSWER, ANSWER]
    stream = await official.completions.create(model="tiny", prompt=[1, 2], max_tokens=50, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == ANSWER


async def test_the_official_client_lists_models(official: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in official.models.list()] == ["tiny"]
    assert (await official.models.retrieve("tiny")).id == "tiny"


async def test_the_official_client_raises_typed_errors(official: openai.AsyncOpenAI, engine: FakeEngineClient) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError) as bad:
        await official.chat.completions.create(model="tiny", messages=messages, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await official.chat.completions.create(model="other", messages=messages)
    engine.submit_errors = [QueueFullError("full")]
    with pytest.raises(openai.RateLimitError):
        await official.chat.completions.create(model="tiny", messages=messages)
    engine.failure, engine.failure_at = EngineFailureError("boom"), 2
    stream = await official.chat.completions.create(model="tiny", messages=messages, stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
