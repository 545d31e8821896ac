"""An app on a fake engine, driven in process."""

from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from fastapi import FastAPI

from glass_core.api import GenerationRequest
from glass_core.text import TextProcessor
from server.app import create_app
from server.config import Settings
from tests.fakes_engine import FakeEngineClient
from tests.tiny_text import END_OF_TURN, tiny_text_processor

ANSWER = "Hello, wörld! 😀"


def saying(text: TextProcessor, answer: str) -> FakeEngineClient:
    """An engine that generates `answer` and the end token, byte by byte."""
    tokens = text.encode(answer + END_OF_TURN)

    def script(request: GenerationRequest) -> Sequence[int]:
        return tokens

    return FakeEngineClient(script)


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Of an app in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture(scope="session")
def text() -> TextProcessor:
    return tiny_text_processor()


@pytest.fixture
def engine(text: TextProcessor) -> FakeEngineClient:
    return saying(text, ANSWER)


@pytest.fixture
def settings() -> Settings:
    return Settings(model="tiny", max_body_bytes=20_000, max_stop_strings=3, max_n=4, max_prompts=3, max_waiting=8)


@pytest.fixture
def app(settings: Settings, engine: FakeEngineClient, text: TextProcessor) -> FastAPI:
    return create_app(settings, engine, text)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as instance:
        yield instance
