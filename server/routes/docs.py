"""`GET /docs`: a self-contained page. FastAPI's own loads its scripts from a CDN, which an offline box cannot reach."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)

# everything is inline and talks to this server only
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The API in short, read from /openapi.json, with a form to try it."""
    return HTMLResponse(_page(), headers={"content-security-policy": POLICY})


@router.get("/")
async def root() -> RedirectResponse:
    return RedirectResponse("/docs", status_code=307)


@cache
def _page() -> str:
    return files("server").joinpath("static", "docs.html").read_text(encoding="utf-8")
