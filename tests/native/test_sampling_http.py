"""Sampling from end to end: the official client, a live server, and each runner with a tiny model."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import CacheConfig, EngineConfig
from glass_core.engine.client import start_engine
from glass_core.runners.native.checkpoint_image import make_image
from glass_core.text import load_text_processor
from server.app import create_app
from server.config import Settings
from tests.server.live_app import serving
from tests.tiny_models import VOCAB_SIZE, save_tiny_model

pytest.importorskip("glass_core.runners.native._native")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")
    make_image(open_prepared(folder), "bf16")
    return folder


@pytest.fixture(params=["native", "torch_runner"])
async def client(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    cache = CacheConfig(block_size=4, kv_cache_bytes=1 << 20)
    dtype = "bf16" if request.param == "native" else "float32"
    engine = start_engine(
        EngineConfig(model_path=model, model_name="tiny", runner=request.param, dtype=dtype, cache=cache)
    )
    app = create_app(Settings(model="tiny"), engine, load_text_processor(model))
    async with (
        serving(app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as official,
    ):
        yield official
    await engine.close()


async def test_log_probabilities_are_probabilities(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        logprobs=True,
        top_logprobs=20,
        max_completion_tokens=6,
        temperature=0.8,
        seed=3,
        extra_body={"ignore_eos": True},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 6
    for token in logprobs.content:
        values = [entry.logprob for entry in token.top_logprobs]
        assert len(values) == 20 and values == sorted(values, reverse=True)
        assert 0.0 < sum(map(math.exp, values)) <= 1.0 + 1e-9
        assert token.logprob <= values[0] <= 0.0


async def test_greedy_tokens_are_the_most_probable_ones(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny",
        prompt="abc",
        logprobs=1,
        max_tokens=8,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    num_tokens = 0
    async for chunk in stream:
        logprobs = chunk.choices[0].logprobs if chunk.choices else None
        if logprobs is not None:
            assert logprobs.tokens is not None and logprobs.top_logprobs is not None
            num_tokens += len(logprobs.tokens)
            for token, value, top in zip(
                logprobs.tokens, logprobs.token_logprobs or [], logprobs.top_logprobs, strict=True
            ):
                assert top == {token: value}
    assert num_tokens == 8


async def test_a_bias_forces_and_forbids_tokens(client: openai.AsyncOpenAI) -> None:
    async def first_tokens(bias: dict[str, int]) -> list[str]:
        answer = await client.completions.create(
            model="tiny", prompt="abc", logprobs=0, max_tokens=4, temperature=0, logit_bias=bias
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None
        return logprobs.tokens

    forced = await first_tokens({"70": 100})
    assert len(forced) == 4 and len(set(forced)) == 1
    assert forced[0] not in await first_tokens({"70": -100})


async def test_a_bias_for_no_token_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt="abc", logit_bias={str(VOCAB_SIZE): 1})
    assert caught.value.param == "logit_bias"


async def test_a_seed_repeats_an_answer(client: openai.AsyncOpenAI) -> None:
    async def answer(seed: int) -> str:
        answered = await client.completions.create(
            model="tiny",
            prompt="abc",
            max_tokens=12,
            temperature=1.5,
            top_p=0.9,
            seed=seed,
            frequency_penalty=0.5,
            extra_body={"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.2, "ignore_eos": True},
        )
        return answered.choices[0].text

    assert await answer(1) == await answer(1) != await answer(2)
