"""Models, health, version, docs, metrics, request ids and logs."""

import json
import logging

import httpx
import pytest
from fastapi import FastAPI

from glass_core import __version__
from glass_core.api import StepCost
from glass_core.text import TextProcessor
from server.app import create_app
from server.config import Settings
from server.deps import Backend
from server.log import JsonFormatter, choose_request_id
from tests.fakes_engine import FakeEngineClient
from tests.server.conftest import ANSWER, client_of
from tests.server.wire import CHAT, HELLO, error_of, sample

NUM_TOKENS = len(ANSWER.encode()) + 1
COUNTS = ("dense", "computed", "planned")


async def test_models_lists_the_served_model(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert {**model, "created": 0} == {
        "id": "tiny",
        "object": "model",
        "created": 0,
        "owned_by": "glass",
        "max_model_len": 256,
    }
    assert (await client.get("/v1/models/tiny")).json() == model


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models/org/other")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


async def test_aliases_and_any_model(engine: FakeEngineClient, text: TextProcessor) -> None:
    aliased = Settings.model_validate({"model": "tiny", "model_aliases": "gpt-4o, org/other"})
    for settings, name in ((aliased, "org/other"), (Settings(model="tiny", accept_any_model=True), "anything")):
        async with client_of(create_app(settings, engine, text)) as client:
            answer = await client.post(CHAT, json={**HELLO, "model": name})
            assert answer.json()["model"] == "tiny"
            assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
            listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
            assert listed == ["tiny", *settings.model_aliases]


async def test_health_lives_while_loading_and_draining(
    app: FastAPI, client: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    backend: Backend = app.state.backend
    assert (await client.get("/ready")).status_code == 200
    backend.begin_drain()
    assert (await client.get("/health")).status_code == 200
    engine.dead = True
    assert (await client.get("/health")).status_code == 503
    backend.model = None
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/metrics")).status_code == 200
    version = (await client.get("/version")).json()
    assert version == {"version": __version__, "event_loop": "asyncio", "chat_template": None, "engine": None}


async def test_a_dead_engine_is_not_ready(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.dead = True
    assert (await client.get("/ready")).status_code == 503
    assert (await client.post(CHAT, json=HELLO)).status_code == 503


async def test_version_says_what_the_engine_can_do(client: httpx.AsyncClient) -> None:
    body = (await client.get("/version")).json()
    assert body["version"] == __version__
    assert body["engine"]["methods"] == ["griffin", "dense"]
    assert (body["engine"]["isa"], body["engine"]["num_threads"]) == ("fake_isa", 3)
    assert body["engine"]["kv_cache_dtype"] == "fake_kv"
    assert body["engine"]["unavailable_methods"] == {"a_glass": "no artifact"}


async def test_docs_are_one_page_without_foreign_addresses(client: httpx.AsyncClient) -> None:
    root = await client.get("/")
    assert (root.status_code, root.headers["location"]) == (307, "/docs")
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "glass_sparsity" in page.text
    assert "//" not in page.text.replace("http://www.w3.org", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_the_description_documents_our_fields(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        for field in ("glass_sparsity", "lambda", "glass_method", "glass_profile", "glass_refine"):
            assert fields[field]["description"]
    assert "lambda" in schemas["GlassReport"]["properties"]


async def test_metrics_after_a_request(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.cost_by_method = {"griffin": StepCost(1000, 700, 600, 300, 60, 30, 250, 25)}
    await client.post(CHAT, json={**HELLO, "glass_sparsity": 0.5, "lambda": 0.5, "glass_method": "griffin"})
    await client.post(CHAT, json={**HELLO, "stream": True, "max_tokens": 3})
    metrics = (await client.get("/metrics")).text
    sparse = {"model_name": "tiny", "method": "griffin"}
    assert sample(metrics, "glass_request_success_total", **sparse, finished_reason="stop") == 1
    assert sample(metrics, "glass_request_success_total", method="dense", finished_reason="length") == 1
    assert sample(metrics, "glass_inter_token_latency_seconds_count", **sparse) == NUM_TOKENS - 1
    assert sample(metrics, "glass_request_generation_tokens_sum", **sparse) == NUM_TOKENS
    assert sample(metrics, "glass_time_to_first_token_seconds_sum", **sparse) == pytest.approx(0.03)
    assert sample(metrics, "glass_request_queue_time_seconds_sum", **sparse) == pytest.approx(0.01)
    assert sample(metrics, "glass_request_prefill_time_seconds_sum", **sparse) == pytest.approx(0.01)
    assert sample(metrics, "glass_request_decode_time_seconds_sum", **sparse) == pytest.approx(0.07)
    assert sample(metrics, "glass_e2e_request_latency_seconds_sum", **sparse) == pytest.approx(0.1)
    assert sample(metrics, "glass_effective_sparsity_sum", **sparse) == 0.5
    assert sample(metrics, "glass_requested_lambda_sum", **sparse) == 0.5
    assert sample(metrics, "glass_requested_lambda_count", method="dense") == 0
    assert sample(metrics, "glass_plan_global_overlap_ratio_sum", **sparse) == 0.75
    assert sample(metrics, "glass_selection_seconds_sum", **sparse) == pytest.approx(0.001)
    assert sample(metrics, "glass_flops_dense_total", **sparse) == 1000
    assert sample(metrics, "glass_flops_computed_total", **sparse) == 700
    assert sample(metrics, "glass_flops_saved_total", **sparse) == 300
    assert sample(metrics, "glass_flops_planned_total", **sparse) == 650
    assert [sample(metrics, f"glass_ffn_flops_{what}_total", **sparse) for what in COUNTS] == [600, 300, 250]
    assert [sample(metrics, f"glass_ffn_bytes_{what}_total", **sparse) for what in COUNTS] == [60, 30, 25]
    assert sample(metrics, "glass_kv_cache_usage_ratio", model_name="tiny") == 0.25
    assert sample(metrics, "glass_http_requests_total", handler=CHAT, method="POST", status="200") == 2
    assert sample(metrics, "glass_build_info", version=__version__) == 1


async def test_refined_requests_are_counted(client: httpx.AsyncClient) -> None:
    for refine in (True, True, False):
        await client.post(CHAT, json={**HELLO, "glass_sparsity": 0.5, "glass_refine": refine})
    metrics = (await client.get("/metrics")).text
    assert sample(metrics, "glass_refined_requests_total", model_name="tiny", method="a_glass") == 2
    assert sample(metrics, "glass_request_success_total", method="a_glass", finished_reason="stop") == 3


@pytest.mark.parametrize(
    "name",
    [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_ratio",
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
    ],
)
async def test_engine_metrics_are_there_from_the_start(client: httpx.AsyncClient, name: str) -> None:
    assert f'glass_{name}{{model_name="tiny"}}' in (await client.get("/metrics")).text


async def test_paths_and_methods_never_become_labels(client: httpx.AsyncClient) -> None:
    await client.get("/some/secret/path")
    await client.request("BREW", "/v1/models/secret-name")
    metrics = (await client.get("/metrics")).text
    assert "secret" not in metrics
    assert "BREW" not in metrics
    assert sample(metrics, "glass_http_requests_total", handler="unmatched", status="404") == 1


@pytest.mark.parametrize("sent", ["abc-1._Z", "a" * 128])
async def test_a_harmless_request_id_is_echoed(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/health", headers={"x-request-id": sent})
    assert response.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", [None, "", "a" * 129, "a b", "é", "a\nb", "<x>"])
def test_any_other_request_id_is_replaced(sent: str | None) -> None:
    first, second = choose_request_id(sent), choose_request_id(sent)
    assert first != second
    assert first.startswith("req_")


async def test_every_answer_has_a_request_id(client: httpx.AsyncClient) -> None:
    for response in (await client.get("/nothing"), await client.post(CHAT, json={}), await client.get("/metrics")):
        assert response.headers["x-request-id"].startswith("req_")


async def test_requests_are_logged_as_json(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="glass.access"):
        await client.post(CHAT, json=HELLO, headers={"x-request-id": "my-id"})
    (record,) = [record for record in caplog.records if record.name == "glass.access"]
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", CHAT, 200)
    assert entry["duration_seconds"] >= 0


def test_a_log_line_holds_the_exception() -> None:
    try:
        raise ValueError("boom")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("glass", logging.ERROR, "", 0, "failed %s", ("x",), info)
    entry = json.loads(JsonFormatter().format(record))
    assert entry["message"] == "failed x"
    assert "boom" in entry["exception"]
