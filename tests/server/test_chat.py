"""`/v1/chat/completions` on a fake engine: answers, streams, choices, stop strings, GLASS fields."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from glass_core.api import SparsityParams
from glass_core.text import TextProcessor
from server.app import create_app
from server.config import Settings
from tests.fakes_engine import FAKE_INFO, FakeEngineClient
from tests.server.conftest import ANSWER, client_of
from tests.server.wire import CHAT, COMPLETIONS, HELLO, chat_text, events


async def test_an_answer_has_text_usage_and_report(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    response = await client.post(CHAT, json={**HELLO, "glass_sparsity": 0.5, "lambda": 0.25, "glass_method": "griffin"})
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
    assert body["choices"] == [{**choice, "message": {"role": "assistant", "content": ANSWER, "refusal": None}}]
    num_prompt, num_generated = len(engine.requests[0].prompt_token_ids), len(ANSWER.encode()) + 1
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert body["glass"] == {
        "method": "griffin",
        "sparsity_requested": 0.5,
        "max_kl": None,
        "expected_kl": None,
        "sparsity": 0.5,
        "lambda": 0.25,
        "profile": "uniform",
        "refine": False,
        "ffn_flops_saved_ratio": 0.4,
        "flops_saved_ratio": 0.24,
        "ffn_flops_saved_ratio_planned": 0.5,
        "flops_saved_ratio_planned": 0.3,
        "flops_dense": 1000,
        "flops_computed": 760,
        "flops_planned": 700,
        "selection_seconds": 0.001,
    }


async def test_the_prompt_is_the_rendered_conversation(
    client: httpx.AsyncClient, engine: FakeEngineClient, text: TextProcessor
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    await client.post(CHAT, json={"messages": messages})
    expected = text.encode(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(engine.requests[0].prompt_token_ids) == expected


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "min_tokens": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.2,
        "ignore_eos": True,
    }
    await client.post(CHAT, json={**HELLO, **fields, "seed": 5, "max_completion_tokens": 9, "user": "u", "store": True})
    assert engine.requests[0].cache_salt is None
    sampling = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert (sampling.seed, sampling.max_tokens) == (5, 9)


async def test_the_cache_salt_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    await client.post(CHAT, json={**HELLO, "cache_salt": "tenant 1"})
    await client.post(COMPLETIONS, json={"prompt": ["a", "b"], "cache_salt": "tenant 2"})
    assert [request.cache_salt for request in engine.requests] == ["tenant 1", "tenant 2", "tenant 2"]


async def test_defaults_are_openais(client: httpx.AsyncClient, engine: FakeEngineClient, text: TextProcessor) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "seed", "stream", "max_tokens", "logit_bias", "tools"))
    await client.post(CHAT, json={**HELLO, **nulls})
    request = engine.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (1.0, 1.0, 0)
    assert request.sampling.max_tokens == engine.info.max_model_len - len(request.prompt_token_ids)
    assert request.sampling.stop_token_ids == text.stop_token_ids
    assert request.sparsity == SparsityParams(seed=request.sampling.seed, max_kl=0.02, expected_kl=0.0)


async def test_a_random_seed_is_drawn_per_request(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    for _ in range(2):
        await client.post(CHAT, json=HELLO)
    first, second = engine.requests
    assert first.sampling.seed != second.sampling.seed
    assert first.request_id != second.request_id


async def test_headers_set_sparsity_and_the_body_wins(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    headers = {"X-Glass-Sparsity": "0.25", "X-Glass-Lambda": "0.75"}
    await client.post(CHAT, json=HELLO, headers=headers)
    await client.post(CHAT, json={**HELLO, "glass_sparsity": 0, "lambda": 1}, headers=headers)
    asked = [(request.sparsity.sparsity, request.sparsity.lambda_) for request in engine.requests]
    assert asked == [(0.25, 0.75), (0, 1)]


async def test_unknown_vendor_fields_are_ignored(client: httpx.AsyncClient) -> None:
    fields = {"vendor_field": {"a": 1}, "tools": [], "response_format": {"type": "text"}, "top_logprobs": 0}
    assert (await client.post(CHAT, json={**HELLO, **fields, "logprobs": False})).status_code == 200


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[Any]:
    response = await client.post(CHAT, json={**HELLO, "stream": True, **fields})
    assert response.status_code == 200
    return events(response.text)


async def test_a_stream_has_its_headers(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json={**HELLO, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers


async def test_a_stream_has_role_then_text_then_one_finish(client: httpx.AsyncClient) -> None:
    chunks = await stream(client)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert all(set(choice["delta"]) == {"content"} and choice["delta"]["content"] for choice in choices[1:-1])
    assert chat_text(chunks) == ANSWER
    assert len(choices) == 2 + len(ANSWER)  # byte tokens, one chunk a character: never half of one
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert ["glass" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all("usage" not in chunk for chunk in chunks)


async def test_include_usage_adds_one_last_chunk(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, stream_options={"include_usage": True}, glass_sparsity=0.5, glass_method="griffin")
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
    assert chunks[-1]["glass"]["flops_computed"] == 760
    assert all("glass" not in chunk for chunk in chunks[:-1])


async def test_an_answer_without_text_still_begins_and_ends(
    client: httpx.AsyncClient, engine: FakeEngineClient, text: TextProcessor
) -> None:
    engine.script = lambda request: text.stop_token_ids
    chunks = await stream(client)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {}]


async def test_length_is_the_reason_when_max_tokens_end_it(client: httpx.AsyncClient) -> None:
    body = (await client.post(CHAT, json={**HELLO, "max_tokens": 5})).json()
    assert body["choices"][0]["message"]["content"] == ANSWER[:5]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5


async def test_a_character_cut_by_max_tokens_is_a_replacement(client: httpx.AsyncClient) -> None:
    num_tokens = ANSWER.encode().index("ö".encode()) + 1
    chunks = await stream(client, max_tokens=num_tokens)
    assert chat_text(chunks) == "Hello, w\ufffd"


@pytest.mark.parametrize(("stop", "shown"), [("wör", "Hello, "), (["😀", "ld"], "Hello, wör"), (["never"], ANSWER)])
async def test_stop_strings_across_tokens_cut_exactly(
    client: httpx.AsyncClient, engine: FakeEngineClient, stop: str | list[str], shown: str
) -> None:
    whole = (await client.post(CHAT, json={**HELLO, "stop": stop})).json()
    chunks = await stream(client, stop=stop)
    assert whole["choices"][0]["message"]["content"] == chat_text(chunks) == shown
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert not engine.running


async def test_a_stop_string_ends_the_sequence_and_the_count(
    client: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    body = (await client.post(CHAT, json={**HELLO, "stop": ","})).json()
    assert list(engine.finish_calls) == [engine.requests[0].request_id]
    assert body["usage"]["completion_tokens"] == len("Hello,")


async def test_a_stop_string_in_the_last_token_is_a_stop(client: httpx.AsyncClient) -> None:
    body = (await client.post(CHAT, json={**HELLO, "stop": ",", "max_tokens": len("Hello,")})).json()
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_choices_have_their_own_seeds_and_one_report(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    body = (await client.post(CHAT, json={**HELLO, "n": 3, "seed": 5})).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    num_prompt = len(engine.requests[0].prompt_token_ids)
    assert body["usage"]["prompt_tokens"] == num_prompt
    assert body["usage"]["completion_tokens"] == 3 * (len(ANSWER.encode()) + 1)
    assert body["glass"]["flops_dense"] == 3000


async def test_choices_share_one_stream(
    client: httpx.AsyncClient, engine: FakeEngineClient, text: TextProcessor
) -> None:
    answers = ["first", "the second", ""]
    engine.script = lambda request: text.encode(answers[int(request.request_id.rsplit("-", 1)[1])] + "<|im_end|>")
    chunks = await stream(client, n=3)
    assert [chat_text(chunks, index) for index in range(3)] == answers
    for index in range(3):
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in choices].count("stop") == 1
        assert choices[-1]["finish_reason"] == "stop"
    assert sum("glass" in chunk for chunk in chunks) == 1
    assert "glass" in chunks[-1]
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order), "the choices must be interleaved"


async def test_the_servers_defaults_fill_in(
    client: httpx.AsyncClient, engine: FakeEngineClient, text: TextProcessor
) -> None:
    settings = Settings(model="tiny", default_sparsity=0.4, default_lambda=0.1, default_method="griffin")
    async with client_of(create_app(settings, engine, text)) as other:
        await other.post(CHAT, json=HELLO)
    sparsity = engine.requests[0].sparsity
    assert (sparsity.sparsity, sparsity.lambda_, sparsity.method) == (0.4, 0.1, "griffin")


async def test_the_profile_defaults_to_the_best_the_model_has(text: TextProcessor, engine: FakeEngineClient) -> None:
    engine.info = replace(engine.info, profiles=("uniform", "sensitivity"), default_profile="sensitivity")
    for settings, expected in ((Settings(), "sensitivity"), (Settings(default_profile="uniform"), "uniform")):
        async with client_of(create_app(settings, engine, text)) as client:
            await client.post(CHAT, json=HELLO)
        assert engine.requests[-1].sparsity.profile == expected


REFINABLE = replace(FAKE_INFO, refinement={"uniform": 0.6})


@pytest.mark.parametrize(
    ("settings", "fields", "headers", "expected"),
    [
        ({}, {}, {}, True),
        ({}, {"glass_refine": False}, {}, False),
        ({}, {}, {"X-Glass-Refine": "false"}, False),
        ({}, {"glass_refine": True}, {"X-Glass-Refine": "false"}, True),
        ({}, {"glass_sparsity": 0}, {}, False),
        ({}, {"glass_sparsity": 0.7}, {}, False),  # beyond the table: a static plan
        ({}, {"glass_sparsity": 0.7, "glass_refine": True}, {}, True),  # asked for: the engine refuses it
        ({}, {"glass_method": "a_glass"}, {}, False),  # who names a ranking gets it
        ({}, {"lambda": 0.5}, {}, False),
        ({}, {}, {"X-Glass-Lambda": "0.5"}, False),
        ({}, {"glass_method": "griffin", "glass_refine": True}, {}, True),
        ({}, {"glass_profile": "sensitivity"}, {}, False),  # no table for it
        ({"refine": False}, {}, {}, False),
        ({"refine": False}, {"glass_refine": True}, {}, True),
        ({"refine": True}, {"glass_sparsity": 0.7}, {}, True),
        ({"refine": True}, {"lambda": 0.5}, {}, False),
        ({"default_method": "griffin"}, {}, {}, False),
        ({"default_lambda": 0.5}, {}, {}, False),
        ({"default_lambda": 0.5, "refine": True}, {}, {}, True),
    ],
)
async def test_refinement_is_the_default_where_nothing_speaks_against_it(
    text: TextProcessor,
    engine: FakeEngineClient,
    settings: dict[str, Any],
    fields: dict[str, Any],
    headers: dict[str, str],
    expected: bool,
) -> None:
    engine.info = REFINABLE
    async with client_of(create_app(Settings(**settings), engine, text)) as client:
        response = await client.post(CHAT, json={**HELLO, "glass_sparsity": 0.5, **fields}, headers=headers)
    assert response.status_code == 200
    assert engine.requests[0].sparsity.refine is expected


@pytest.mark.parametrize(
    ("settings", "fields", "expected"),
    [
        ({}, {}, (True, None)),
        ({}, {"lambda": 0.5}, (False, 0.5)),  # ranked statically
        ({}, {"lambda": 0.5, "glass_refine": False}, (False, 0.5)),
        ({"refine": True}, {"lambda": 0.5}, (False, 0.5)),
        ({"default_lambda": 0.3}, {}, (False, 0.3)),
        ({"default_lambda": 0.3}, {"glass_refine": True}, (True, None)),  # the server's is for static rankings
    ],
)
async def test_refined_answers_have_no_lambda(
    text: TextProcessor,
    engine: FakeEngineClient,
    settings: dict[str, Any],
    fields: dict[str, Any],
    expected: tuple[bool, float | None],
) -> None:
    engine.info = REFINABLE
    async with client_of(create_app(Settings(**settings), engine, text)) as client:
        response = await client.post(CHAT, json={**HELLO, "glass_sparsity": 0.5, **fields})
    params, report = engine.requests[0].sparsity, response.json()["glass"]
    assert (params.refine, params.lambda_) == expected
    assert (report["refine"], report["lambda"]) == expected


@pytest.mark.parametrize(
    ("settings", "fields", "headers"),
    [
        ({}, {"lambda": 0.5, "glass_refine": True}, {}),
        ({}, {"lambda": 1, "glass_refine": True, "glass_sparsity": 0.5}, {}),
        ({}, {"lambda": 0.5, "glass_refine": True, "glass_sparsity": 0}, {}),
        ({}, {"lambda": 0.5}, {"X-Glass-Refine": "true"}),
        ({}, {"glass_refine": True}, {"X-Glass-Lambda": "0.5"}),
        ({"default_lambda": 0.3}, {"lambda": 0.3, "glass_refine": True}, {}),
    ],
)
async def test_a_refined_request_with_a_lambda_is_refused(
    text: TextProcessor,
    engine: FakeEngineClient,
    settings: dict[str, Any],
    fields: dict[str, Any],
    headers: dict[str, str],
) -> None:
    engine.info = REFINABLE
    async with client_of(create_app(Settings(**settings), engine, text)) as client:
        response = await client.post(CHAT, json={**HELLO, **fields}, headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "lambda")
    assert "leave out lambda, or set glass_refine to false" in error["message"]
    assert not engine.requests


async def test_without_thresholds_nothing_is_refined_by_default(
    client: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    await client.post(CHAT, json={**HELLO, "glass_sparsity": 0.5})
    assert not engine.requests[0].sparsity.refine
