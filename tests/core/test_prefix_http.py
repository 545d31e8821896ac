"""The prefix cache seen from outside: `usage`, `/metrics` and the settings."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from glass_core.config import CacheConfig, EngineConfig
from glass_core.engine.client import start_engine
from glass_core.errors import ConfigurationError
from glass_core.text import load_text_processor
from server.__main__ import build_parser
from server.app import create_app
from server.config import Settings
from tests.tiny_models import save_tiny_model

QUESTION = {
    "model": "tiny",
    "prompt": "What is the capital of France? The capital of",
    "max_tokens": 4,
    "temperature": 0,
}


async def ask(model: Path, bodies: list[dict[str, Any]], cache: CacheConfig) -> tuple[list[dict[str, Any]], str]:
    """The answers, one after the other, and the metrics after them."""
    client = start_engine(EngineConfig(model_path=model, model_name="tiny", runner="torch_runner", cache=cache))
    app = create_app(Settings(model="tiny", default_method="griffin"), client, load_text_processor(model))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        answers = [(await http.post("/v1/completions", json=body)).json() for body in bodies]
        metrics = (await http.get("/metrics")).text
    await client.close()
    return answers, metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
async def test_cached_tokens_are_reported_and_counted(model: Path, sparsity: float) -> None:
    body = {**QUESTION, "glass_sparsity": sparsity}
    answers, metrics = await ask(model, [body, body], CacheConfig(block_size=4, kv_cache_bytes=1 << 20))
    first, second = (answer["usage"] for answer in answers)
    cached = (first["prompt_tokens"] - 1) // 4 * 4
    assert cached > 0
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second)] == [0, cached]
    assert first["prompt_tokens"] == second["prompt_tokens"]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
    assert f'glass_prefix_cache_queries_total{{model_name="tiny"}} {2.0 * first["prompt_tokens"]}' in metrics
    assert f'glass_prefix_cache_hits_total{{model_name="tiny"}} {float(cached)}' in metrics
    assert f'glass_prompt_tokens_total{{model_name="tiny"}} {2.0 * first["prompt_tokens"]}' in metrics
    assert 'glass_kv_cache_usage_ratio{model_name="tiny"} 0.0' in metrics


async def test_another_salt_finds_nothing(model: Path) -> None:
    bodies = [{**QUESTION, "glass_sparsity": 0.5, **salt} for salt in ({}, {"cache_salt": "x"}, {"cache_salt": "y"})]
    answers, _ = await ask(model, [*bodies, *bodies], CacheConfig(block_size=4, kv_cache_bytes=1 << 20))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[:3] == [0, 0, 0]
    assert min(cached[3:]) > 0
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert len({(answer["glass"]["sparsity"], answer["glass"]["method"]) for answer in answers}) == 1


async def test_without_the_cache_nothing_is_reported(model: Path) -> None:
    cache = CacheConfig(block_size=4, kv_cache_bytes=1 << 20, enable_prefix_caching=False)
    answers, metrics = await ask(model, [QUESTION, QUESTION], cache)
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers] == [0, 0]
    assert 'glass_prefix_cache_queries_total{model_name="tiny"} 0.0' in metrics


def test_it_is_on_unless_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().cache_config().enable_prefix_caching
    flags = vars(build_parser().parse_args(["--no-enable-prefix-caching", "--prefix-statistics-bytes", "7"]))
    assert Settings(**flags).cache_config() == CacheConfig(enable_prefix_caching=False, prefix_statistics_bytes=7)
    assert vars(build_parser().parse_args(["--enable-prefix-caching"])) == {"enable_prefix_caching": True}
    monkeypatch.setenv("GLASS_ENABLE_PREFIX_CACHING", "false")
    assert not Settings().cache_config().enable_prefix_caching


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="prefix_statistics_bytes must not be negative, got -1"):
        CacheConfig(prefix_statistics_bytes=-1)
