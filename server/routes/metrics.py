"""`GET /metrics`: Prometheus text exposition."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse

from server.deps import MetricsDep

router = APIRouter(tags=["operation"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(metrics: MetricsDep) -> PlainTextResponse:
    """Counters, gauges and histograms of this server and its engine."""
    return PlainTextResponse(metrics.render(), media_type=CONTENT_TYPE_LATEST)
