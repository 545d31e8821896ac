"""Every error of the contract: status, envelope, code, field."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from glass_core.api import FinishReason
from glass_core.errors import (
    ContextLengthError,
    EngineFailureError,
    EngineUnavailableError,
    GlassError,
    InvalidRequestError,
    MissingStatisticsError,
    QueueFullError,
)
from server.app import create_app
from server.config import Settings
from server.deps import Backend
from server.errors import TABLE, describe, scrub
from server.log import RequestContextMiddleware
from server.sse import encode_json
from tests.fakes_engine import FakeEngineClient
from tests.server.wire import CHAT, COMPLETIONS, HELLO, chat_text, error_of, events, sample
from tests.tiny_text import tiny_text_processor

USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": 1, "content": ""}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"glass_sparsity": 0.96}, "glass_sparsity"),
        ({"glass_sparsity": -0.1}, "glass_sparsity"),
        ({"glass_sparsity": True}, "glass_sparsity"),
        ({"glass_sparsity": "0.5"}, "glass_sparsity"),
        ({"glass_sparsity": NAN}, "glass_sparsity"),
        ({"lambda": 1.01}, "lambda"),
        ({"lambda": NAN}, "lambda"),
        ({"lambda": []}, "lambda"),
        ({"glass_method": "magic"}, "glass_method"),
        ({"glass_profile": 1}, "glass_profile"),
        ({"glass_refine": "yes"}, "glass_refine"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 4}, "stop"),
        ({"stop": "a" * 300}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 7}, "cache_salt"),
        ({"cache_salt": "\ud800"}, "cache_salt"),
        ({"cache_salt": "x" * 513}, "cache_salt"),
    ],
)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, engine: FakeEngineClient, fields: dict[str, Any], param: str
) -> None:
    content = json.dumps({**HELLO, **fields})
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    error = error_of(response)
    assert response.status_code == 400
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error",) * 2 + (param,)
    assert not engine.requests


async def test_a_range_error_says_the_range_and_the_value(client: httpx.AsyncClient) -> None:
    message = error_of(await client.post(CHAT, json={**HELLO, "glass_sparsity": 1.5}))["message"]
    assert "glass_sparsity" in message
    assert "0.95" in message
    assert "1.5" in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages"),
    ],
)
async def test_a_known_field_without_support_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json={**HELLO, **fields})
    error = error_of(response)
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 9000, b'{"messages": [], "n": ' + b"9" * 5000 + b"}"],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, path: str, content: bytes) -> None:
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


async def test_a_body_without_json_content_type_is_told_so(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, content=json.dumps(HELLO))
    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Glass-Sparsity", "0.99"), ("X-Glass-Lambda", "x"), ("X-Glass-Lambda", "nan"), ("X-Glass-Refine", "1")],
)
async def test_a_wrong_header_is_named(client: httpx.AsyncClient, name: str, value: str) -> None:
    response = await client.post(CHAT, json=HELLO, headers={name: value})
    assert response.status_code == 400
    assert error_of(response)["param"] == name


async def test_the_context_error_gives_three_numbers(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    for fields, asked in (({"max_tokens": 250}, 250), ({"messages": [{"role": "user", "content": "x" * 300}]}, 1)):
        response = await client.post(CHAT, json={**HELLO, **fields})
        error = error_of(response)
        assert response.status_code == 400
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert str(engine.info.max_model_len) in error["message"]
        assert f"asks for {asked}" in error["message"].replace("at least ", "")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_another_models_name_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"model": "gpt-9", "messages": [USER], "prompt": "x"})
    error = error_of(response)
    assert response.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", "/", 405, "method_not_allowed"),
    ],
)
async def test_the_routers_errors_use_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == code


async def endless_body() -> Any:
    while True:
        yield b"x" * 1000


async def test_a_large_body_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    declared = await client.post(CHAT, content=b"x" * 30_000, headers=headers)
    chunked = await client.post(CHAT, content=endless_body(), headers=headers)
    for response in (declared, chunked):
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (QueueFullError("the queue is full", retry_after_seconds=7), 429, "rate_limit_exceeded", None),
        (EngineUnavailableError("loading"), 503, "service_unavailable", None),
        (EngineFailureError("boom"), 500, "server_error", None),
        (ContextLengthError("too long", param="max_tokens"), 400, "context_length_exceeded", "max_tokens"),
        (InvalidRequestError("bad", param="glass_profile"), 400, "invalid_request_error", "glass_profile"),
        (MissingStatisticsError("calibrate first", param="glass_method"), 400, "missing_statistics", "glass_method"),
        (RuntimeError("secret detail"), 500, "server_error", None),
    ],
)
async def test_a_refused_submission_is_plain_http(
    client: httpx.AsyncClient,
    engine: FakeEngineClient,
    error: Exception,
    status: int,
    code: str,
    param: str | None,
    streamed: bool,
) -> None:
    engine.submit_errors = [error]
    response = await client.post(CHAT, json={**HELLO, "stream": streamed})
    body = error_of(response)
    assert response.status_code == status
    assert (body["code"], body["param"]) == (code, param)
    assert "secret" not in response.text
    assert response.headers["x-request-id"]
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1


async def test_a_later_refusal_aborts_the_choices_before_it(
    client: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    engine.submit_errors = [None, None, QueueFullError("full")]
    response = await client.post(CHAT, json={**HELLO, "n": 3})
    assert response.status_code == 429
    assert len(engine.aborted) == 2
    assert not engine.running


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failure_before_the_first_token_is_plain_http(
    client: httpx.AsyncClient, engine: FakeEngineClient, streamed: bool
) -> None:
    engine.failure = EngineFailureError("at /usr/lib/x.so 0xdeadbeef")
    response = await client.post(CHAT, json={**HELLO, "stream": streamed})
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "/usr" not in response.text


@pytest.mark.parametrize("failure", [EngineFailureError("at /usr/lib/x.so"), ValueError("a bug")])
async def test_a_failure_in_a_stream_is_an_event_then_done(
    client: httpx.AsyncClient, engine: FakeEngineClient, failure: Exception
) -> None:
    engine.failure, engine.failure_at = failure, 3
    response = await client.post(CHAT, json={**HELLO, "stream": True, "n": 2})
    chunks = events(response.text)
    assert response.status_code == 200
    assert chat_text(chunks[:-1]) != ""
    assert set(chunks[-1]["error"]) == {"message", "type", "param", "code"}
    assert chunks[-1]["error"]["type"] == "server_error"
    assert "/usr" not in response.text
    assert not engine.running


async def test_an_aborted_sequence_is_a_failure_for_its_client(
    client: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), 2
    waiting = asyncio.create_task(client.post(CHAT, json=HELLO))
    while not engine.running:  # noqa: ASYNC110  nothing signals the arrival
        await asyncio.sleep(0.001)
    engine.finish(next(iter(engine.running)), FinishReason.ABORTED)
    engine.gate.set()
    assert (await waiting).status_code == 500


def test_nan_never_becomes_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json({"flops_saved_ratio": NAN})


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/models", "/ready"])
async def test_loading_and_draining_are_unavailable(app: FastAPI, client: httpx.AsyncClient, path: str) -> None:
    backend: Backend = app.state.backend
    model, backend.model = backend.model, None
    method, body = ("POST", {**HELLO, "prompt": "x"}) if path in (CHAT, COMPLETIONS) else ("GET", None)
    loading = await client.request(method, path, json=body)
    backend.model = model
    backend.begin_drain()
    draining = await client.request(method, path, json=body)
    for response in (loading, draining):
        assert response.status_code == 503
        assert error_of(response)["code"] == "service_unavailable"
        assert int(response.headers["retry-after"]) >= 1
    metrics = (await client.get("/metrics")).text
    expected = 2 if method == "POST" else 0
    assert sample(metrics, "glass_admission_rejections_total", reason="unavailable") == expected


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot open /usr/lib/python3/x.py now", "cannot open … now"),
        ("object at 0x7f3a2b1c9d00", "object at …"),
        ("use /v1/completions or n/a, 1/2", "use /v1/completions or n/a, 1/2"),
        ("two\nlines", "two lines"),
    ],
)
def test_messages_are_scrubbed(message: str, shown: str) -> None:
    assert scrub(message) == shown


def test_every_error_of_the_table_is_described() -> None:
    for kind, (status, error_type, code) in TABLE:
        error: GlassError = kind("m", param="p") if kind is MissingStatisticsError else kind("m")
        described = describe(error)
        assert (described.status, described.type, described.code) == (status, error_type, code)


async def test_rejections_are_counted_by_reason(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.submit_errors = [QueueFullError("full"), ContextLengthError("long"), EngineUnavailableError("dead")]
    for _ in range(3):
        await client.post(CHAT, json=HELLO)
    metrics = (await client.get("/metrics")).text
    for reason in ("queue_full", "context_length", "unavailable"):
        assert sample(metrics, "glass_admission_rejections_total", reason=reason, model_name="tiny") == 1


async def test_a_model_without_template_says_what_to_use(engine: FakeEngineClient) -> None:
    app = create_app(Settings(model="tiny"), engine, tiny_text_processor(template=None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        error = error_of(await client.post(CHAT, json=HELLO))
    assert error["param"] == "messages"
    assert "/v1/completions" in error["message"]


async def test_a_bug_after_the_first_byte_closes_the_connection() -> None:
    sent: list[Message] = []

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("a bug")

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing to read")

    middleware = RequestContextMiddleware(broken, internal_error=Response, access_log=True)
    with pytest.raises(ValueError, match="a bug"):
        await middleware({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_the_app_accepts_a_lifespan(app: FastAPI) -> None:
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return inbox.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
