"""docker/Dockerfile.cpu read as text: what it copies exists and reaches the build, and it keeps its promises."""

import os
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.stack.dashboard import ROOT

DOCKER = ROOT / "docker"


def instructions() -> list[tuple[str, str]]:
    """(keyword, arguments) of every instruction, continuation lines joined."""
    text = (DOCKER / "Dockerfile.cpu").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines()]


def arguments(keyword: str) -> list[str]:
    return [rest for name, rest in instructions() if name == keyword]


def copied_from_context() -> list[str]:
    copies = [rest.split() for rest in arguments("COPY") if "--from=" not in rest]
    return [source for parts in copies for source in parts[:-1] if not source.startswith("--")]


def test_is_multi_stage() -> None:
    assert [rest.split(" AS ")[1] for rest in arguments("FROM")] == ["builder", "runtime"]


def test_base_image_is_pinned_and_slim() -> None:
    assert arguments("ARG")[0] == "PYTHON_IMAGE=python:3.11-slim"


def test_runs_as_a_numeric_ordinary_user() -> None:
    assert arguments("USER")[-1] == "10001:10001"


def test_health_check_asks_ready_with_python() -> None:
    (check,) = arguments("HEALTHCHECK")
    assert "urllib.request" in check
    assert "/ready" in check


def test_keeps_models_in_a_volume() -> None:
    assert "GLASS_HOME=/var/lib/glass" in arguments("ENV")[-1]
    assert arguments("VOLUME") == ["/var/lib/glass"]


def test_leaves_no_package_cache() -> None:
    assert "PIP_NO_CACHE_DIR=1" in arguments("ENV")[0]


@pytest.mark.parametrize("source", copied_from_context())
def test_copied_files_exist_and_are_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    patterns = (DOCKER / "Dockerfile.cpu.dockerignore").read_text().splitlines()
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert any(fnmatch(source, pattern) for pattern in allowed)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A stand-in for `glass` that writes down how it was called."""
    calls = tmp_path / "calls"
    stand_in = tmp_path / "glass"
    stand_in.write_text(f'#!/bin/sh\necho "$*" >> "{calls}"\n')
    stand_in.chmod(0o755)
    return calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a-name"], ["pull a-name", "serve a-name --host 0.0.0.0 --port 8000"]),
        (["/models/x", "--dtype", "y"], ["serve /models/x --host 0.0.0.0 --port 8000 --dtype y"]),
    ],
)
def test_entrypoint_pulls_names_then_serves(recorded: Path, arguments: list[str], expected: list[str]) -> None:
    environment = {"PATH": f"{recorded.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(DOCKER / "entrypoint.sh"), *arguments], check=True, env=environment)
    assert recorded.read_text().splitlines() == expected


def test_entrypoint_hands_over_its_process() -> None:
    assert re.search(r"^exec glass serve ", (DOCKER / "entrypoint.sh").read_text(), flags=re.MULTILINE)


def test_image_has_the_native_runner_and_no_torch() -> None:
    install = next(rest for rest in arguments("RUN") if "pip install" in rest)
    assert "import glass_core.runners.native._native" in install
    assert "torch" not in " ".join(arguments("RUN"))
