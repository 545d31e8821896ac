"""The HTTP schema changes only on purpose, and covers what clients rely on."""

import json
from typing import Any

import pytest

from tests.contracts.openapi_snapshot import SNAPSHOT, render

PATHS = {
    ("/v1/chat/completions", "post"),
    ("/v1/completions", "post"),
    ("/v1/models", "get"),
    ("/health", "get"),
    ("/ready", "get"),
    ("/metrics", "get"),
    ("/version", "get"),
}
GLASS_FIELDS = {"glass_sparsity", "lambda", "glass_method", "glass_profile"}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(render())
    return parsed


def test_schema_is_the_accepted_one() -> None:
    assert render() == SNAPSHOT.read_text(encoding="utf-8"), "if the change is meant: make snapshot"


@pytest.mark.parametrize(("path", "method"), sorted(PATHS))
def test_endpoint_is_described(schema: dict[str, Any], path: str, method: str) -> None:
    assert method in schema["paths"][path]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_generating_endpoints_take_the_glass_fields(schema: dict[str, Any], path: str) -> None:
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    definition = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
    assert definition["properties"].keys() >= GLASS_FIELDS


def test_errors_are_described_by_the_envelope(schema: dict[str, Any]) -> None:
    responses = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    for status in ("400", "404", "429", "503"):
        reference = responses[status]["content"]["application/json"]["schema"]["$ref"]
        assert reference.endswith("/ErrorResponse")
