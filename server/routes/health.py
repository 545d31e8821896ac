"""`GET /health` (the process and its engine thread live), `/ready` (send traffic), `/version`."""

import asyncio
from typing import Any

from fastapi import APIRouter

from glass_core import __version__
from glass_core.api import EngineInfo
from server.deps import BackendDep, ModelDep
from server.routes.described import ERROR_RESPONSES

router = APIRouter(tags=["operation"])
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: ERROR_RESPONSES[503]}


@router.get("/health", responses=UNAVAILABLE)
async def health(backend: BackendDep) -> dict[str, str]:
    """200 while the process lives, also during loading and draining; 503 when the engine thread is dead."""
    if backend.model is not None:
        backend.model.engine.check_health()
    return {"status": "ok"}


@router.get("/ready", responses=UNAVAILABLE)
async def ready(model: ModelDep) -> dict[str, str]:
    """200 when requests are served; 503 while loading, draining, or after the engine died."""
    return {"status": "ready", "model": model.engine.info.model_name}


@router.get("/version")
async def version(backend: BackendDep) -> dict[str, Any]:
    """This server's version, the event loop it runs on and, once loaded, where the chat template comes from and what
    the engine is and can do."""
    model = backend.model
    return {
        "version": __version__,
        "event_loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "chat_template": None if model is None else model.text.template_origin,
        "engine": None if model is None else _describe(model.engine.info),
    }


def _describe(info: EngineInfo) -> dict[str, Any]:
    return {
        "model": info.model_name,
        "fingerprint": info.fingerprint,
        "runner": info.runner,
        "dtype": info.dtype,
        "device": info.device,
        "isa": info.isa,
        "num_threads": info.num_threads,
        "kv_cache_dtype": info.kv_cache_dtype,
        "max_model_len": info.max_model_len,
        "num_layers": info.num_layers,
        "intermediate_size": info.intermediate_size,
        "num_parameters": info.num_parameters,
        "artifact": info.artifact,
        "methods": info.methods,
        "unavailable_methods": dict(info.unavailable_methods),
        "profiles": info.profiles,
        "refinement": dict(info.refinement),
        "expected_kl": {profile: sorted(methods) for profile, methods in info.expected_kl.items()},
        "notes": info.notes,
    }
