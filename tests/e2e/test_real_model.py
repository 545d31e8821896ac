"""The product as a user meets it: a real server process, the real default model, the official `openai` client."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.model
MODEL = "smollm2-135m"
JAPAN = "What is the capital of Japan?"


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(MODEL, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as instance:
        yield instance


def ask(client: openai.OpenAI, question: str, **extra_body: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=48,
        extra_body=extra_body,
    )


def glass_report(answer: Any) -> dict[str, Any]:
    report: dict[str, Any] = answer.model_extra["glass"]
    return report


def test_dense_answer_is_right(client: openai.OpenAI) -> None:
    answer = ask(client, JAPAN, glass_sparsity=0)
    assert answer.choices[0].message.content == "The capital of Japan is Tokyo."
    assert answer.choices[0].finish_reason == "stop"
    report = glass_report(answer)
    assert report["sparsity"] == 0
    assert report["flops_computed"] == report["flops_dense"]


def test_sparse_answer_reports_what_it_saved(client: openai.OpenAI) -> None:
    answer = ask(client, JAPAN, **{"glass_sparsity": 0.5, "lambda": 0.5})
    report = glass_report(answer)
    assert report["method"] == "a_glass"
    assert report["lambda"] == 0.5
    assert report["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert 0 < report["flops_saved_ratio"] < report["ffn_flops_saved_ratio"] < 0.5
    assert answer.usage.completion_tokens > 0


def test_refined_answer_finds_its_prompt_again(client: openai.OpenAI) -> None:
    question = "Tell me about the history of Japan. " * 5
    first, second = (ask(client, question, glass_sparsity=0.3, glass_refine=True) for _ in range(2))
    report = glass_report(first)
    assert (report["refine"], report["lambda"]) == (True, None)
    assert report["sparsity"] == pytest.approx(0.3, abs=0.05)
    assert second.choices[0].message.content == first.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 32


def test_tokens_stream_one_by_one(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": JAPAN}],
        temperature=0,
        max_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"glass_sparsity": 0},
    )
    arrivals, texts, usage = [], [], None
    for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            texts.append(chunk.choices[0].delta.content)
            arrivals.append(time.monotonic())
    assert "".join(texts) == "The capital of Japan is Tokyo."
    assert len(texts) == 7, f"one chunk a token was expected, got {texts}"
    assert arrivals == sorted(set(arrivals))
    assert usage is not None and usage.completion_tokens == 8


def test_concurrent_sparsities_answer_as_if_alone(client: openai.OpenAI) -> None:
    questions = [("Name three colors.", 0.0), ("Why is the sky blue?", 0.5)]
    alone = [ask(client, text, glass_sparsity=s).choices[0].message.content for text, s in questions]
    with ThreadPoolExecutor(2) as pool:
        together = [
            a.choices[0].message.content for a in pool.map(lambda q: ask(client, q[0], glass_sparsity=q[1]), questions)
        ]
    assert together == alone
    assert alone[0] != alone[1]


def test_same_seed_same_answer(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_completions_accept_text_and_token_ids(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4)
    batch = client.completions.create(
        model=MODEL, prompt=["The capital of France is", "One, two,"], temperature=0, max_tokens=4
    )
    assert "Paris" in text.choices[0].text
    assert batch.choices[0].text == text.choices[0].text
    assert [choice.index for choice in batch.choices] == [0, 1]


def test_errors_reach_the_client_typed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, JAPAN, glass_sparsity=1.5)
    assert caught.value.param == "glass_sparsity"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"


def test_dropped_streams_leave_the_engine_idle(server: LiveServer) -> None:
    """200 clients vanish after the first bytes: within two seconds nothing runs and every KV block is free."""

    def drop(index: int) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Count to {index}"}],
            "max_tokens": 512,
            "ignore_eos": True,
            "stream": True,
            "glass_sparsity": 0.5 if index % 2 else 0.0,
        }
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as response:
            assert response.status_code == httpx.codes.OK
            next(response.iter_lines())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(drop, range(200)))
    dropped_at = time.monotonic()
    names = ("glass_num_requests_running", "glass_num_requests_waiting", "glass_kv_cache_usage_ratio")
    while any(server.metric(name) for name in names):
        assert time.monotonic() - dropped_at < 2, {name: server.metric(name) for name in names}
        time.sleep(0.05)


def test_termination_lets_running_requests_finish(default_model: Path, tmp_path: Path) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": 64,
        "ignore_eos": True,
        "stream": True,
    }
    with LiveServer(MODEL, tmp_path / "log") as server:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as response:
            lines = response.iter_lines()
            next(lines)
            server.terminate()
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert server.process.wait(timeout=30) == 0, server.log()
    assert events[-1] == "[DONE]"
    finish = [json.loads(event) for event in events[:-1] if '"finish_reason":"length"' in event.replace(" ", "")]
    assert len(finish) == 1
