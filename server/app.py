"""The app factory: middleware, routes, error handlers and state put together. No globals, nothing at import."""

import time

from fastapi import FastAPI
from starlette.middleware import Middleware

from glass_core import __version__
from glass_core.api import EngineClient
from glass_core.text import TextProcessor
from server.body_limit import BodyLimitMiddleware
from server.config import Settings
from server.deps import Backend
from server.errors import INTERNAL_ERROR, error_response, install
from server.log import RequestContextMiddleware
from server.metrics import HttpMetricsMiddleware, ServerMetrics
from server.routes import chat, completions, docs, health, metrics, models

DESCRIPTION = """\
OpenAI-compatible inference whose every request chooses how much of the model's feed-forward network it computes
(GLASS, arXiv 2508.14302): `glass_sparsity` says how much to skip, `lambda` how far the choice of neurons trusts the
model's own ranking over the prompt's.
"""


def create_app(settings: Settings, engine: EngineClient, text: TextProcessor) -> FastAPI:
    """An app that serves a loaded model. The caller keeps ownership of the engine and closes it."""
    backend = Backend()
    backend.attach(engine, text)
    return create_app_for(settings, backend)


def create_app_for(settings: Settings, backend: Backend) -> FastAPI:
    """An app whose backend may still be loading: until a model is attached, generation is answered with 503."""
    server_metrics = ServerMetrics(backend.snapshot, version=__version__)
    app = FastAPI(
        title="glass",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(
                RequestContextMiddleware,
                internal_error=lambda: error_response(INTERNAL_ERROR),
                access_log=settings.access_log,
            ),
            Middleware(HttpMetricsMiddleware, metrics=server_metrics),
            Middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes),
        ],
    )
    app.state.settings = settings
    app.state.backend = backend
    app.state.metrics = server_metrics
    app.state.created = int(time.time())
    install(app)
    for module in (chat, completions, models, health, metrics, docs):
        app.include_router(module.router)
    return app
