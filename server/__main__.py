"""The composition root: flags and environment → settings → HTTP server, and behind it the engine.

    python -m server smollm2-135m --port 8000

The port opens at once; `/ready` answers 503 until the model is loaded. SIGTERM or Ctrl-C drains: new requests get 503,
running ones finish, at most for `drain_timeout_seconds`. A second signal ends the process on the spot.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from prometheus_client import disable_created_metrics
from uvicorn.loops.auto import auto_loop_factory

from glass_core.api import EngineInfo
from glass_core.config import EngineConfig
from glass_core.engine.client import ThreadedEngineClient, start_engine
from glass_core.errors import GlassError
from glass_core.text import TextProcessor, load_text_processor
from server.app import create_app_for
from server.config import AUTO_SPARSITY, Settings, load_settings
from server.deps import Backend, GlassHeaders
from server.heap import release_free_heap
from server.log import configure_logging
from server.routes.sparsity import SparsityChoice
from server.schemas.glass import GlassFields

# after the engine is idle, answers only have to be written out
WRITE_OUT_SECONDS = 5
KEEP_ALIVE_SECONDS = 75

logger = logging.getLogger("glass.server")


class GracefulServer(uvicorn.Server):
    """A uvicorn server whose first signal starts a drain, during which it keeps answering, with 503."""

    def __init__(self, config: uvicorn.Config, backend: Backend, drain_seconds: float) -> None:
        super().__init__(config)
        self._backend = backend
        self._drain_seconds = drain_seconds
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs between two bytecodes of the main thread, so it only sets flags; `on_tick` acts on them."""
        if self._backend.draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._backend.begin_drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._backend.draining and self._drain is None:
            self._drain = asyncio.create_task(self._finish_running())
        return await super().on_tick(counter)

    async def _finish_running(self) -> None:
        logger.info("draining")
        model = self._backend.model
        if model is not None and not await model.engine.drain(self._drain_seconds):
            logger.warning("the drain timeout ended running requests")
        self.should_exit = True


def build_parser() -> argparse.ArgumentParser:
    """One flag per setting, named like it, documented by its description."""
    parser = argparse.ArgumentParser(
        prog="glass serve",
        usage="glass serve [MODEL] [flags]",
        description="Serve a model over OpenAI's API. Each flag is a variable too: --max-n is GLASS_MAX_N.",
    )
    for name, info in Settings.model_fields.items():
        text = (info.description or "").replace("%", "%%")
        default = info.get_default()
        shown = "" if default in (None, (), "") else f" (default: {default})"
        if name == "model":
            parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=text + shown)
        elif info.annotation in (bool, bool | None):
            action = argparse.BooleanOptionalAction
            parser.add_argument(_flag(name), action=action, default=argparse.SUPPRESS, help=text + shown)
        else:
            parser.add_argument(_flag(name), default=argparse.SUPPRESS, metavar="VALUE", help=text + shown)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def banner(settings: Settings, model_name: str) -> str:
    """What a person needs to make the first request."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  compared, not bound
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    warning = "Anyone who can reach this address can use it: there are no keys.\n" if settings.is_public else ""
    return f"""
glass serves {model_name} at {url}/v1
API and a form to try it: {url}/docs
{warning}
curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
  "model": "{model_name}",
  "messages": [{{"role": "user", "content": "What is the capital of Japan?"}}],
  "temperature": 0,
  "max_tokens": 64,
  "glass_sparsity": 0.5,
  "lambda": 0.5
}}'
"""


def default_problem(settings: Settings, info: EngineInfo) -> str | None:
    """Why requests that say nothing run dense although the default is `auto`; None where they need not."""
    if settings.default_sparsity != AUTO_SPARSITY:
        return None
    problem = SparsityChoice(GlassFields(), GlassHeaders(None, None), settings, info).problem()
    if problem is None:
        return None
    return f"default_sparsity is auto, but requests without a glass_sparsity run dense: {problem}"


def load_model(config: EngineConfig, chat_template: str | None) -> tuple[ThreadedEngineClient, TextProcessor]:
    """Seconds of work, so it runs in a thread. The text first: it fails faster."""
    text = load_text_processor(config.model_path, chat_template)
    engine = start_engine(config)
    release_free_heap()
    return engine, text


async def serve(settings: Settings) -> None:
    """Serve until a signal. Raises GlassError when the model cannot be loaded."""
    config = settings.engine_config()
    backend = Backend()
    app = create_app_for(settings, backend)
    server = GracefulServer(uvicorn_config(app, settings), backend, settings.drain_timeout_seconds)
    loading = asyncio.create_task(_load(backend, config, settings, server))
    try:
        await server.serve()
    finally:
        # a load that is under way cannot be interrupted; its engine would have nobody to serve
        await asyncio.gather(loading, return_exceptions=True)
        if backend.model is not None:
            await backend.model.engine.close()
    await loading


async def _load(backend: Backend, config: EngineConfig, settings: Settings, server: GracefulServer) -> None:
    logger.info("loading %s", config.model_name)
    try:
        engine, text = await asyncio.to_thread(load_model, config, settings.chat_template)
    except BaseException:
        server.should_exit = True
        raise
    backend.attach(engine, text)
    problem = default_problem(settings, engine.info)
    if problem is not None:
        logger.warning(problem)
    print(banner(settings, engine.info.model_name), flush=True)  # noqa: T201  for the person at the terminal


def uvicorn_config(app: object, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=WRITE_OUT_SECONDS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a drain, 1 when the settings or the model are wrong; argparse exits with 2."""
    flags = vars(build_parser().parse_args(argv))
    configure_logging()
    # a second series per counter that no dashboard reads
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = load_settings(**flags)
        # uvloop where it is installed: a wake-up costs half of asyncio's
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(serve(settings))
    except GlassError as error:
        print(f"glass serve: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
