"""The composition root: flags, banner, loading in the background, draining on a signal."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import server.__main__ as entry
from glass_core.config import EngineConfig
from glass_core.errors import CheckpointError
from glass_core.text import TextProcessor
from server.config import Settings
from tests.fakes_engine import FakeEngineClient
from tests.server.conftest import ANSWER
from tests.server.live_app import until
from tests.server.wire import CHAT, HELLO, chat_text, events

Load = Callable[[EngineConfig, str | None], Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Settings(model=str(tmp_path), port=port, drain_timeout_seconds=5)


def use_loader(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    monkeypatch.setattr(entry, "load_model", load)


def leave_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` owns its process; here it shares it with the other tests."""
    monkeypatch.setattr(entry, "configure_logging", lambda: None)
    monkeypatch.setattr(entry, "disable_created_metrics", lambda: None)


async def is_ready(client: httpx.AsyncClient) -> int | None:
    try:
        return (await client.get("/ready")).status_code
    except httpx.TransportError:
        return None


async def wait_for_status(client: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(10):
        while await is_ready(client) != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_server_loads_serves_and_drains(
    settings: Settings,
    engine: FakeEngineClient,
    text: TextProcessor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import threading

    may_load = threading.Event()

    def load(config: EngineConfig, chat_template: str | None) -> Any:
        assert may_load.wait(10)
        return engine, text

    use_loader(monkeypatch, load)
    running = asyncio.create_task(entry.serve(settings))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}") as client:
        await wait_for_status(client, 503)
        assert (await client.get("/health")).status_code == 200
        may_load.set()
        await wait_for_status(client, 200)
        engine.gate, engine.gate_at = asyncio.Event(), 3
        streaming = asyncio.create_task(client.post(CHAT, json={**HELLO, "model": None, "stream": True}))
        await until(lambda: bool(engine.running))
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: engine.draining)
        assert await is_ready(client) == 503
        refused = await client.post(CHAT, json={**HELLO, "model": None})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        assert chat_text(events((await streaming).text)) == ANSWER
    await asyncio.wait_for(running, 10)
    assert engine.dead, "the engine must be closed"
    shown = capsys.readouterr().out
    assert f"http://127.0.0.1:{settings.port}/docs" in shown
    assert '"glass_sparsity": 0.5' in shown
    assert '"lambda": 0.5' in shown


async def test_a_signal_while_idle_ends_the_server(
    settings: Settings, engine: FakeEngineClient, text: TextProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_loader(monkeypatch, lambda config, chat_template: (engine, text))
    running = asyncio.create_task(entry.serve(settings))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}") as client:
        await wait_for_status(client, 200)
    signal.raise_signal(signal.SIGINT)
    await asyncio.wait_for(running, 10)


def test_a_model_that_cannot_be_loaded_ends_the_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(config: EngineConfig, chat_template: str | None) -> Any:
        raise CheckpointError("model.safetensors is truncated")

    use_loader(monkeypatch, load)
    leave_process_alone(monkeypatch)
    assert entry.main([settings.model, "--port", str(settings.port)]) == 1
    assert "glass serve: model.safetensors is truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"), [(["no-such-model"], "glass pull"), (["--default-sparsity", "2"], "default_sparsity")]
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_process_alone(monkeypatch)
    assert entry.main(arguments) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_the_model_is_loaded_text_first(settings: Settings) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        entry.load_model(settings.engine_config(), None)


def test_every_setting_is_a_documented_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert field.description
        assert ("MODEL" if name == "model" else "--" + name.replace("_", "-")) in shown


def test_a_second_signal_kills(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.deps import Backend

    raised: list[tuple[str, int]] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: raised.append(("default", number)))
    monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append(("raise", number)))
    backend = Backend()
    server = entry.GracefulServer(entry.uvicorn_config(None, settings), backend, 1.0)
    server.handle_exit(signal.SIGTERM, None)
    assert backend.draining
    assert not raised
    server.handle_exit(signal.SIGTERM, None)
    assert raised == [("default", signal.SIGTERM), ("raise", signal.SIGTERM)]


@pytest.mark.parametrize(
    ("host", "address", "warned"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1", False),
        ("0.0.0.0", "http://127.0.0.1:8000/v1", True),
        ("::1", "http://[::1]:8000/v1", False),
    ],
)
def test_the_banner_gives_a_reachable_address(host: str, address: str, warned: bool) -> None:
    shown = entry.banner(Settings(host=host), "tiny")
    assert address in shown
    assert ("no keys" in shown) is warned


def test_glass_serve_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from glass_core.offline.cli import main

    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: called.append(arguments))
    assert main(["serve", "smollm2-135m", "--port", "9000", "--help", "-x", "--no-access-log"]) == 0
    assert called[0][1:] == ["-m", "server", "smollm2-135m", "--port", "9000", "--help", "-x", "--no-access-log"]
