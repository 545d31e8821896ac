"""Every PromQL expression of the dashboard, evaluated in a real Prometheus that scrapes a real server under traffic."""

import json
import math
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live_server import LiveServer
from tests.stack import dashboard as grafana
from tests.stack.get_prometheus import Prometheus
from tests.stack.live_prometheus import LivePrometheus

pytestmark = [pytest.mark.stack, pytest.mark.model]

MODEL = "smollm2-135m"
# One sequence at a time and one waiting, so that a burst is refused.
FLAGS = ("--max-num-sequences", "1", "--max-waiting", "1")
NUM_BURST_REQUESTS = 6
VARIABLES = {"__rate_interval": "5m", "__interval": "5s", "model": MODEL}
EXPRESSIONS = grafana.expressions(grafana.load())


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(MODEL, tmp_path_factory.mktemp("server") / "log", *FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def live_prometheus(
    prometheus: Prometheus, server: LiveServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LivePrometheus]:
    """Two rounds of traffic, each followed by a scrape: a rate needs two samples of every series."""
    target = server.url.removeprefix("http://")
    with LivePrometheus(prometheus, target, tmp_path_factory.mktemp("prometheus")) as running:
        for _ in range(2):
            send_traffic(server.url)
            running.wait_for_scrape()
        yield running


def send_traffic(url: str) -> None:
    """Dense, sparse and streamed answers, a bad request, and a burst of which the queue must refuse a part."""
    with httpx.Client(base_url=url, timeout=60) as client:
        assert chat(client).status_code == httpx.codes.OK
        for method in ("a_glass", "griffin"):
            assert chat(client, glass_sparsity=0.5, glass_method=method).status_code == httpx.codes.OK
        assert chat(client, stream=True, glass_sparsity=0.3).text.rstrip().endswith("data: [DONE]")
        assert chat(client, glass_sparsity=7).status_code == httpx.codes.BAD_REQUEST
        with ThreadPoolExecutor(NUM_BURST_REQUESTS) as pool:
            statuses = {answer.status_code for answer in pool.map(lambda _: chat(client), range(NUM_BURST_REQUESTS))}
        assert statuses == {httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS}


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Name three colors."}],
        "max_tokens": 8,
        "ignore_eos": True,
        "temperature": 0,
        **fields,
    }
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression_returns_numbers(live_prometheus: LivePrometheus, name: str) -> None:
    result = live_prometheus.query(grafana.fill(EXPRESSIONS[name], VARIABLES))
    values = [float(sample["value"][1]) for sample in result]
    assert values, "no data"
    assert any(math.isfinite(value) for value in values), values


def test_all_models_is_a_valid_choice(live_prometheus: LivePrometheus) -> None:
    variable = grafana.load()["templating"]["list"][0]
    everything = {**VARIABLES, "model": variable["allValue"]}
    for expression in EXPRESSIONS.values():
        assert live_prometheus.query(grafana.fill(expression, everything))


def test_model_variable_offers_the_model(live_prometheus: LivePrometheus) -> None:
    metric, label = grafana.load()["templating"]["list"][0]["definition"].removeprefix("label_values(")[:-1].split(", ")
    assert {sample["metric"][label] for sample in live_prometheus.query(metric)} == {MODEL}


def test_share_of_flops_saved_is_the_servers(live_prometheus: LivePrometheus, server: LiveServer) -> None:
    (sample,) = live_prometheus.query("sum(glass_flops_saved_total) / sum(glass_flops_dense_total)")
    expected = server.metric("glass_flops_saved_total") / server.metric("glass_flops_dense_total")
    assert float(sample["value"][1]) == pytest.approx(expected)
    assert 0 < expected < 1


@pytest.mark.parametrize("what", ["flops", "ffn_flops", "ffn_bytes"])
def test_the_plans_alone_need_no_more_than_was_executed(live_prometheus: LivePrometheus, what: str) -> None:
    (planned, computed, dense) = (
        float(live_prometheus.query(f"sum(glass_{what}_{count}_total)")[0]["value"][1])
        for count in ("planned", "computed", "dense")
    )
    assert 0 < planned <= computed < dense


def test_the_same_prompt_again_hits_the_prefix_cache(live_prometheus: LivePrometheus) -> None:
    name = next(name for name in EXPRESSIONS if name.startswith("Prefix cache hit rate"))
    (sample,) = live_prometheus.query(grafana.fill(EXPRESSIONS[name], VARIABLES))
    assert 0 < float(sample["value"][1]) < 1


def test_alert_rules_evaluate(live_prometheus: LivePrometheus) -> None:
    live_prometheus.wait_for_scrape()
    rules = live_prometheus.rules()
    assert len(rules) >= 6
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] == "err"} == {}


def test_exposition_is_well_formed(prometheus: Prometheus, server: LiveServer, live_prometheus: LivePrometheus) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    done = subprocess.run(
        [str(prometheus.promtool), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_carry_no_request_ids(server: LiveServer, live_prometheus: LivePrometheus) -> None:
    labels = {name for sample in live_prometheus.query('{job="glass"}') for name in sample["metric"]}
    assert not labels & {"request_id", "prompt", "key", "user", "path"}, json.dumps(sorted(labels))
