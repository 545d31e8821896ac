"""What routes depend on: the settings, the metrics, and the backend, which may still be loading or already draining.

All dependencies are coroutines: FastAPI would run plain functions in a thread pool, and the engine's client belongs to
the event loop's thread.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, cast

from fastapi import Depends, Header, Request

from glass_core.api import MAX_SPARSITY, EngineClient, EngineInfo, EngineStats
from glass_core.errors import EngineUnavailableError, InvalidRequestError
from glass_core.text import TextProcessor
from server.config import AUTO_SPARSITY, Settings
from server.metrics import ServerMetrics
from server.schemas.glass import LAMBDA_HEADER, REFINE_HEADER, SPARSITY_HEADER


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An engine and the text side of the same model."""

    engine: EngineClient
    text: TextProcessor


class Backend:
    """Owns the way from loading over serving to draining."""

    def __init__(self) -> None:
        self.model: LoadedModel | None = None
        self.draining = False

    def attach(self, engine: EngineClient, text: TextProcessor) -> None:
        """The model is loaded: serve."""
        self.model = LoadedModel(engine, text)

    def begin_drain(self) -> None:
        """Take no new requests."""
        self.draining = True

    def require(self) -> LoadedModel:
        """The model, for a new request. Raises EngineUnavailableError while loading, draining or dead."""
        if self.draining:
            raise EngineUnavailableError("the server is shutting down and takes no new requests")
        if self.model is None:
            raise EngineUnavailableError("the model is still loading")
        self.model.engine.check_health()
        return self.model

    def snapshot(self) -> tuple[EngineInfo, EngineStats] | None:
        """The engine's numbers for `/metrics`."""
        return None if self.model is None else (self.model.engine.info, self.model.engine.stats())


@dataclass(frozen=True, slots=True)
class GlassHeaders:
    """GLASS fields sent as headers, for clients that cannot add body fields."""

    sparsity: float | Literal["auto"] | None
    lambda_: float | None
    refine: bool | None = None


async def get_settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


async def get_backend(request: Request) -> Backend:
    return cast(Backend, request.app.state.backend)


async def get_metrics(request: Request) -> ServerMetrics:
    return cast(ServerMetrics, request.app.state.metrics)


async def get_created(request: Request) -> int:
    return cast(int, request.app.state.created)


async def get_model(request: Request) -> LoadedModel:
    """The loaded model. Raises EngineUnavailableError when there is none to serve with."""
    return (await get_backend(request)).require()


async def admit(request: Request) -> LoadedModel:
    """The loaded model for a request that generates; counts the refusal when there is none."""
    try:
        return await get_model(request)
    except EngineUnavailableError:
        settings, metrics = await get_settings(request), await get_metrics(request)
        metrics.count_rejection(settings.served_model_name or settings.model, "unavailable")
        raise


async def get_glass_headers(
    sparsity: Annotated[
        str | None, Header(alias=SPARSITY_HEADER, description="glass_sparsity for clients that cannot add body fields")
    ] = None,
    lambda_: Annotated[
        str | None, Header(alias=LAMBDA_HEADER, description="lambda for clients that cannot add body fields")
    ] = None,
    refine: Annotated[
        str | None, Header(alias=REFINE_HEADER, description="glass_refine for clients that cannot add body fields")
    ] = None,
) -> GlassHeaders:
    return GlassHeaders(
        _sparsity(sparsity),
        _ranged(lambda_, LAMBDA_HEADER, 1.0),
        _boolean(refine, REFINE_HEADER),
    )


def _sparsity(text: str | None) -> float | Literal["auto"] | None:
    if text is not None and text.strip() == AUTO_SPARSITY:
        return AUTO_SPARSITY
    return _ranged(text, SPARSITY_HEADER, MAX_SPARSITY, " or auto")


def _boolean(text: str | None, name: str) -> bool | None:
    if text is None:
        return None
    known = {"true": True, "false": False}
    value = text.strip().lower()
    if value not in known:
        raise InvalidRequestError(f"{name}: expected true or false, got {text[:40]!r}", param=name)
    return known[value]


def _ranged(text: str | None, name: str, highest: float, more: str = "") -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= highest:  # false for NaN too
        raise InvalidRequestError(f"{name}: expected a number from 0 to {highest}{more}, got {text[:40]!r}", param=name)
    return value


SettingsDep = Annotated[Settings, Depends(get_settings)]
BackendDep = Annotated[Backend, Depends(get_backend)]
MetricsDep = Annotated[ServerMetrics, Depends(get_metrics)]
CreatedDep = Annotated[int, Depends(get_created)]
ModelDep = Annotated[LoadedModel, Depends(get_model)]
AdmittedModelDep = Annotated[LoadedModel, Depends(admit)]
GlassHeadersDep = Annotated[GlassHeaders, Depends(get_glass_headers)]
