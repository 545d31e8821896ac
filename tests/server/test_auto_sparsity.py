"""`glass_sparsity: "auto"`: what it resolves to, what it refuses, and what the report says."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from glass_core.api import EngineInfo
from glass_core.expected_kl import REFINED, ExpectedKl
from glass_core.offline.automatic_default import automatic_default
from glass_core.sparsity.budget import uniform_profile
from glass_core.sparsity.global_stats import GlobalStatistics
from glass_core.sparsity.refinement import STAGES
from glass_core.sparsity.refinement_table import RefinementTable
from glass_core.text import TextProcessor
from server.__main__ import default_problem
from server.app import create_app
from server.config import Settings
from tests.core.sparsity_samples import NUM_LAYERS, NUM_NEURONS, make_selector, make_statistics, random_weights
from tests.fakes_engine import FAKE_INFO, FakeEngineClient
from tests.server.conftest import client_of
from tests.server.wire import CHAT, HELLO, sample

STATIC = ExpectedKl((0.1, 0.5), (0.1, 0.9), (0.05, 0.8), (0.2, 1.0))
TOKENS = ExpectedKl((0.2, 0.4), (0.015, 0.115), (0.01, 0.1), (0.02, 0.13))
MEASURED = replace(
    FAKE_INFO, refinement={"uniform": 0.6}, expected_kl={"uniform": {REFINED: TOKENS, "a_glass": STATIC}}
)


async def post(
    text: TextProcessor,
    engine: FakeEngineClient,
    fields: dict[str, Any],
    info: EngineInfo = MEASURED,
    headers: dict[str, str] | None = None,
    **settings: Any,
) -> httpx.Response:
    engine.info = info
    async with client_of(create_app(Settings(model="tiny", **settings), engine, text)) as client:
        return await client.post(CHAT, json={**HELLO, **fields}, headers=headers)


@pytest.mark.parametrize(
    ("settings", "fields", "headers", "expected"),
    [
        ({}, {}, {}, (0.21, True, 0.02, 0.02)),
        ({}, {"glass_sparsity": "auto", "glass_max_kl": 0.05}, {}, (0.27, True, 0.05, 0.05)),
        ({}, {"glass_max_kl": 100}, {}, (0.4, True, 100, 0.115)),
        ({"default_max_kl": 0.05}, {}, {}, (0.27, True, 0.05, 0.05)),
        ({"default_sparsity": 0.5}, {}, {"X-Glass-Sparsity": "auto"}, (0.21, True, 0.02, 0.02)),
        ({}, {"glass_refine": False, "glass_max_kl": 0.5}, {}, (0.3, False, 0.5, 0.5)),
        ({"refine": False}, {}, {}, (0.0, False, 0.02, 0.0)),  # 2 % would cost more than it saves
        ({}, {"glass_max_kl": 0.001}, {}, (0.0, False, 0.001, 0.0)),
        ({}, {"lambda": 0.5}, {}, (0.0, False, 0.02, 0.0)),  # not measured: dense by default
        ({}, {"glass_method": "dense", "glass_sparsity": "auto"}, {}, (0.0, False, 0.02, 0.0)),
        ({}, {"glass_sparsity": 0.3}, {}, (0.3, True, None, 0.065)),
        ({}, {"glass_sparsity": 0.5}, {}, (0.5, True, None, None)),
        ({}, {"glass_sparsity": 0.3, "lambda": 0.5}, {}, (0.3, False, None, None)),
        ({}, {"glass_sparsity": 0}, {}, (0.0, False, None, 0.0)),
        ({"default_sparsity": 0.3}, {}, {}, (0.3, True, None, 0.065)),
    ],
)
async def test_what_runs(
    text: TextProcessor,
    engine: FakeEngineClient,
    settings: dict[str, Any],
    fields: dict[str, Any],
    headers: dict[str, str],
    expected: tuple[Any, ...],
) -> None:
    response = await post(text, engine, fields, headers=headers, **settings)
    assert response.status_code == 200
    report = response.json()["glass"]
    found = (report["sparsity_requested"], report["refine"], report["max_kl"], report["expected_kl"])
    assert found == (*expected[:3], pytest.approx(expected[3], abs=1e-2) if expected[3] else expected[3])
    if report["max_kl"] is not None:
        assert report["expected_kl"] <= report["max_kl"]


@pytest.mark.parametrize(
    ("fields", "info", "param", "reason"),
    [
        ({"glass_sparsity": 0.5, "glass_max_kl": 0.1}, MEASURED, "glass_max_kl", "glass_sparsity 'auto'"),
        ({"glass_sparsity": "auto"}, FAKE_INFO, "glass_sparsity", "no expected KL"),
        ({"glass_sparsity": "auto", "lambda": 0.5}, MEASURED, "glass_sparsity", "'a_glass' and lambda 0.5"),
        (
            {"glass_sparsity": "auto", "lambda": 0.5, "glass_refine": True},
            MEASURED,
            "lambda",
            "set glass_refine to false",
        ),
        ({"glass_sparsity": "auto", "glass_method": "griffin"}, MEASURED, "glass_sparsity", "'griffin'"),
        (
            {"glass_sparsity": "auto", "glass_profile": "other", "glass_refine": True},
            MEASURED,
            "glass_sparsity",
            "'other' with glass_refine true",
        ),
    ],
)
async def test_what_is_refused(
    text: TextProcessor, engine: FakeEngineClient, fields: dict[str, Any], info: EngineInfo, param: str, reason: str
) -> None:
    response = await post(text, engine, fields, info)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize("fields", [{"glass_max_kl": 0}, {"glass_max_kl": "0.1"}, {"glass_sparsity": "automatic"}])
async def test_other_values_are_refused(text: TextProcessor, engine: FakeEngineClient, fields: dict[str, Any]) -> None:
    response = await post(text, engine, fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(next(iter(fields)))


async def test_a_bound_is_refused_beside_a_default_number(text: TextProcessor, engine: FakeEngineClient) -> None:
    response = await post(text, engine, {"glass_max_kl": 0.1}, default_sparsity=0.5)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "glass_max_kl"


async def test_without_a_table_the_default_is_dense(text: TextProcessor, engine: FakeEngineClient) -> None:
    response = await post(text, engine, {}, FAKE_INFO)
    report = response.json()["glass"]
    assert (report["sparsity"], report["max_kl"], report["expected_kl"]) == (0.0, 0.02, 0.0)


async def test_metrics_tell_what_auto_chose_and_what_is_expected(text: TextProcessor, engine: FakeEngineClient) -> None:
    engine.info = MEASURED
    async with client_of(create_app(Settings(model="tiny"), engine, text)) as client:
        for fields in ({}, {"glass_max_kl": 0.05}, {"glass_sparsity": 0.3}, {"glass_sparsity": 0.3, "lambda": 0.5}):
            assert (await client.post(CHAT, json={**HELLO, **fields})).status_code == 200
        metrics = (await client.get("/metrics")).text
    sparse = {"model_name": "tiny", "method": "a_glass"}
    assert sample(metrics, "glass_auto_sparsity_count", **sparse) == 2
    assert sample(metrics, "glass_auto_sparsity_sum", **sparse) == pytest.approx(0.21 + 0.27)
    assert sample(metrics, "glass_expected_kl_count", **sparse) == 3
    expected = sum(filter(None, map(TOKENS.at, (0.21, 0.27, 0.3))))
    assert sample(metrics, "glass_expected_kl_sum", **sparse) == pytest.approx(expected)
    assert sample(metrics, "glass_effective_sparsity_count", **sparse) == 4


async def test_auto_that_allows_nothing_counts_as_dense(text: TextProcessor, engine: FakeEngineClient) -> None:
    engine.info = MEASURED
    async with client_of(create_app(Settings(model="tiny"), engine, text)) as client:
        await client.post(CHAT, json={**HELLO, "glass_max_kl": 0.001})
        metrics = (await client.get("/metrics")).text
    assert sample(metrics, "glass_auto_sparsity_sum", method="dense") == 0
    assert sample(metrics, "glass_auto_sparsity_count", method="dense") == 1
    assert sample(metrics, "glass_expected_kl_bucket", method="dense", le="0.001") == 1


@pytest.mark.parametrize("refinable", [True, False])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
async def test_the_doctor_tells_what_the_server_does_by_default(
    text: TextProcessor, engine: FakeEngineClient, refinable: bool, scale: float
) -> None:
    statistics = measured_statistics(scale, refinable=refinable)
    selector = make_selector(statistics)
    info = replace(
        FAKE_INFO,
        default_profile=selector.default_profile,
        refinement=selector.refinable,
        expected_kl=selector.expected_kl,
    )
    report = (await post(text, engine, {}, info)).json()["glass"]
    spec = SimpleNamespace(num_layers=NUM_LAYERS, intermediate_size=NUM_NEURONS)
    default = automatic_default(spec, statistics)  # type: ignore[arg-type]
    assert default is not None
    assert (default.sparsity, default.max_kl) == (report["sparsity_requested"], report["max_kl"])
    assert default.expected_kl == pytest.approx(report["expected_kl"])
    assert (default.method == REFINED) is refinable
    assert default.profile == report["profile"]
    assert ("dense" if default.sparsity == 0 else f"{default.sparsity:.0%}") in default.describe()


def test_the_doctor_knows_of_no_default_without_a_table() -> None:
    spec = SimpleNamespace(num_layers=NUM_LAYERS, intermediate_size=NUM_NEURONS)
    assert automatic_default(spec, make_statistics()) is None  # type: ignore[arg-type]


def measured_statistics(scale: float, *, refinable: bool) -> GlobalStatistics:
    """An artifact whose expected KL is `scale` times that of the tables above."""
    points = np.ones((1, len(STAGES), NUM_LAYERS), np.float32)
    thresholds = RefinementTable(np.array([0.6], np.float32), points, random_weights(3))
    tables = {name: scaled(table, scale) for name, table in ((REFINED, TOKENS), ("a_glass", STATIC))}
    return make_statistics(
        without=("sensitivity",),
        profiles={"uniform": uniform_profile(NUM_LAYERS)},
        refinement={"uniform": thresholds} if refinable else {},
        expected_kl={"uniform": tables if refinable else {"a_glass": tables["a_glass"]}},
    )


def scaled(table: ExpectedKl, scale: float) -> ExpectedKl:
    kl, low, high = (tuple(scale * value for value in values) for values in (table.kl, table.low, table.high))
    return ExpectedKl(table.sparsities, kl, low, high)


def test_the_operator_hears_of_a_default_without_a_table() -> None:
    assert default_problem(Settings(), MEASURED) is None
    assert default_problem(Settings(default_sparsity=0.5), FAKE_INFO) is None
    problem = default_problem(Settings(), FAKE_INFO)
    assert problem is not None
    assert "run dense" in problem


@pytest.mark.parametrize(
    ("settings", "info", "what"),
    [
        ({"default_method": "griffin"}, MEASURED, "glass_profile 'uniform' with glass_method 'griffin'"),
        ({"default_lambda": 0.3}, MEASURED, "with glass_method 'a_glass' and lambda 0.3"),
        ({}, replace(MEASURED, default_profile="tuned", refinement={"tuned": 0.6}), "'tuned' with glass_refine true"),
    ],
)
def test_the_operator_hears_of_defaults_that_no_table_is_for(
    settings: dict[str, Any], info: EngineInfo, what: str
) -> None:
    problem = default_problem(Settings(**settings), info)
    assert problem is not None
    assert what in problem


def test_a_dense_default_method_needs_no_table() -> None:
    assert default_problem(Settings(default_method="dense"), FAKE_INFO) is None
