"""deploy/compose.yaml against the Compose Specification's schema, and the promises its services make."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.stack.dashboard import DEPLOY

COMPOSE = DEPLOY / "compose.yaml"
SCHEMA = Path(__file__).parent / "data" / "compose-spec.schema.json"
SERVICES = ("glass", "prometheus", "grafana")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return parsed


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_matches_the_schema(compose: dict[str, Any], validator: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in validator.iter_errors(compose)] == []


def test_schema_catches_a_misspelt_key(compose: dict[str, Any], validator: jsonschema.Draft7Validator) -> None:
    broken = {**compose, "services": {**compose["services"], "glass": {"image": "x", "helthcheck": {}}}}
    assert not validator.is_valid(broken)


def test_has_the_three_services(compose: dict[str, Any]) -> None:
    assert tuple(compose["services"]) == SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_watched_restarted_and_bounded(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["deploy"]["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SERVICES)
def test_image_is_pinned(compose: dict[str, Any], name: str) -> None:
    tag = compose["services"][name]["image"].partition(":")[2]
    assert tag not in ("", "latest")


@pytest.mark.parametrize("name", SERVICES)
def test_is_published_on_loopback_by_default(compose: dict[str, Any], name: str) -> None:
    for port in compose["services"][name]["ports"]:
        assert port.startswith(("127.0.0.1:", "${GLASS_BIND:-127.0.0.1}:"))


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_exist(compose: dict[str, Any], name: str) -> None:
    for volume in compose["services"][name]["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).is_dir()
        else:
            assert source in compose["volumes"]


def test_env_example_names_exactly_the_variables_used() -> None:
    code = re.sub(r"^\s*#.*$", "", COMPOSE.read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"\$\{(\w+)", code))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), flags=re.MULTILINE))
    assert used == offered


def test_build_uses_existing_files(compose: dict[str, Any]) -> None:
    build = compose["services"]["glass"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()
    declared = re.findall(r"^ARG (\w+)", (context / build["dockerfile"]).read_text(), flags=re.MULTILINE)
    assert set(build.get("args", {})) <= set(declared)
