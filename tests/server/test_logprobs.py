"""logprobs and logit_bias on the wire: OpenAI's shapes, streamed and whole, beside stop strings and cut characters."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from glass_core.api import TokenLogprobs
from server.logprobs import ShownToken, TokenLedger
from tests.fakes_engine import FakeEngineClient
from tests.server.conftest import ANSWER
from tests.server.live_app import serving
from tests.server.wire import CHAT, COMPLETIONS, HELLO, error_of, events

MESSAGES: Any = [{"role": "user", "content": "hi"}]
NUM_BYTES = len(ANSWER.encode())


@pytest.fixture
async def official(app: FastAPI) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_a_chat_answer_shows_its_tokens(official: openai.AsyncOpenAI) -> None:
    answer = await official.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == NUM_BYTES  # a token per byte; the end token is not part of the text
    assert bytes(byte for token in logprobs.content for byte in token.bytes or []).decode() == ANSWER
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("H", -0.25, [72])
    assert [(entry.token, entry.logprob) for entry in first.top_logprobs] == [("H", -0.25), ('"', -2.0)]


async def test_logprobs_without_top_ones_are_the_tokens_own(official: openai.AsyncOpenAI) -> None:
    answer = await official.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert {len(token.top_logprobs) for token in logprobs.content} == {0}


async def test_streamed_tokens_come_with_their_text(official: openai.AsyncOpenAI) -> None:
    stream = await official.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=1, stream=True, n=2
    )
    texts, shown = ["", ""], [b"", b""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            content = choice.logprobs.content if choice.logprobs else None
            shown[choice.index] += bytes(byte for token in content or [] for byte in token.bytes or [])
            assert shown[choice.index].decode() == texts[choice.index]
    assert texts == [ANSWER, ANSWER]


async def test_a_text_completion_shows_its_tokens(official: openai.AsyncOpenAI) -> None:
    answer = await official.completions.create(model="tiny", prompt="a", max_tokens=5, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list("Hello")
    assert logprobs.token_logprobs == [-0.25] * 5
    assert logprobs.text_offset == [0, 1, 2, 3, 4]
    assert logprobs.top_logprobs is not None and logprobs.top_logprobs[1] == {"e": -0.25, '"': -2.0}
    stream = await official.completions.create(model="tiny", prompt="a", max_tokens=5, logprobs=0, stream=True)
    offsets: list[int] = []
    async for chunk in stream:
        offsets += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.text_offset) or []
    assert offsets == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("streamed", [True, False])
async def test_tokens_of_a_stop_string_are_left_out(client: httpx.AsyncClient, streamed: bool) -> None:
    body = {"prompt": "a", "stop": "lo,", "logprobs": 0, "max_tokens": 100, "stream": streamed}
    response = await client.post(COMPLETIONS, json=body)
    chunks = events(response.text) if streamed else [response.json()]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == "Hel"
    assert [token for choice in choices for token in (choice["logprobs"] or {"tokens": []})["tokens"]] == list("Hel")


async def test_the_parts_of_a_character_come_together(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "logprobs": 3, "max_tokens": 100}
    logprobs = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]["logprobs"]
    at = ANSWER.index("ö")
    assert logprobs["tokens"][at : at + 3] == ["\ufffd", "\ufffd", "r"]
    assert logprobs["text_offset"][at : at + 3] == [at, at, at + 1]
    assert logprobs["text_offset"][-4:] == [len(ANSWER) - 1] * 4


async def test_a_cut_character_keeps_its_tokens(client: httpx.AsyncClient) -> None:
    num_tokens = NUM_BYTES - 2
    body = {"prompt": "a", "logprobs": 0, "max_tokens": num_tokens}
    logprobs = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == num_tokens


async def test_without_logprobs_there_are_none(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    for path, fields in ((CHAT, HELLO), (COMPLETIONS, {"prompt": "a"})):
        answer = (await client.post(path, json=fields)).json()
        assert answer["choices"][0]["logprobs"] is None
        assert engine.requests[-1].sampling.num_logprobs is None


async def test_logit_bias_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    body = {**HELLO, "logit_bias": {"5": -100, "17": 2.5}}
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert engine.requests[-1].sampling.logit_bias == ((5, -100.0), (17, 2.5))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(CHAT, json={**HELLO, **fields})
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith(param)


def test_the_ledger_shows_each_token_once_and_in_order() -> None:
    ledger = TokenLedger()
    tokens = [ShownToken(token_id, offset, TokenLogprobs(-1.0)) for token_id, offset in enumerate((0, 1, 1, 3, 4))]
    for token in tokens[:3]:
        ledger.add(token)
    assert ledger.release("") == ()
    assert ledger.release("x") == (tokens[0],)
    for token in tokens[3:]:
        ledger.add(token)
    assert ledger.release("yz") == tuple(tokens[1:3])
    assert ledger.flush("", stopped=False) == tuple(tokens[3:])
    assert ledger.flush("", stopped=False) == ()
