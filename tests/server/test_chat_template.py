"""A model without a chat template, and one that `--chat-template` gives a template to, over a real socket."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

import server.__main__ as entry
from glass_core.text import load_text_processor
from server.app import create_app
from server.config import Settings
from tests.e2e.live_server import free_port
from tests.fakes_engine import FakeEngineClient
from tests.server.conftest import ANSWER, saying
from tests.server.live_app import serving
from tests.server.wire import CHAT, COMPLETIONS, HELLO
from tests.tiny_text import END_OF_TURN, byte_tokenizer, tiny_text_processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tokenizer of a base model."""
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": "{END_OF_TURN}"}}')
    return tmp_path


@pytest.fixture
def engine() -> FakeEngineClient:
    return saying(tiny_text_processor(), ANSWER)


def app_for(engine: FakeEngineClient, folder: Path, template: str | None) -> FastAPI:
    return create_app(Settings(model="tiny"), engine, load_text_processor(folder, template))


async def test_without_a_template_chat_is_a_clear_error(engine: FakeEngineClient, folder: Path) -> None:
    async with serving(app_for(engine, folder, None)) as url, httpx.AsyncClient(base_url=url) as http:
        refused = await http.post(CHAT, json=HELLO)
        completed = await http.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 100})
        version = (await http.get("/version")).json()
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "messages")
    assert "no chat template" in error["message"]
    assert "/v1/completions" in error["message"]
    assert "--chat-template" in error["message"]
    assert completed.json()["choices"][0]["text"] == ANSWER
    assert version["chat_template"] is None


async def test_a_template_file_makes_the_prompt(engine: FakeEngineClient, folder: Path) -> None:
    template = folder / "mine.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}[bot]")
    async with serving(app_for(engine, folder, str(template))) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100})
        version = (await http.get("/version")).json()
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    expected = tiny_text_processor().encode(f"[user] hi{END_OF_TURN}[bot]")
    assert list(engine.requests[0].prompt_token_ids) == expected
    assert version["chat_template"] == "--chat-template mine.jinja"


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "expected a Jinja file"), ("{% for %}", "malformed"), ("x", "leaves")]
)
def test_a_wrong_template_ends_the_server_with_one_line(
    folder: Path, content: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "configure_logging", lambda: None)
    monkeypatch.setattr(entry, "disable_created_metrics", lambda: None)
    template = folder / "mine.jinja"
    if content is not None:
        template.write_text(content)
    assert entry.main([str(folder), "--port", str(free_port()), "--chat-template", str(template)]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert "chat_template" in error
    assert error.count("\n") == 1
