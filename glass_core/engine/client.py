"""ThreadedEngineClient: asyncio on this side, the engine thread on the other. Implements `api.EngineClient`.

Everything here but `_deliver` runs in the event loop's thread, so the table of open streams needs no lock.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

from glass_core.api import EngineInfo, EngineStats, FinishReason, GenerationRequest, TokenEvent
from glass_core.config import EngineConfig
from glass_core.engine.engine import Engine
from glass_core.engine.loading import load_engine
from glass_core.engine.streams import Inbox, TokenStream
from glass_core.engine.worker import Add, Delivery, End, EngineThread, Stop
from glass_core.errors import (
    EngineFailureError,
    EngineUnavailableError,
    GlassError,
    InvalidRequestError,
    QueueFullError,
)

MAX_RETRY_AFTER_SECONDS = 60
ABORT_GRACE_SECONDS = 2.0


def start_engine(config: EngineConfig) -> "ThreadedEngineClient":
    """Load model, runner and artifact in the calling thread, then start the engine thread.

    Raises ConfigurationError, ModelError, ArtifactMismatchError and ArtifactError.
    """
    return ThreadedEngineClient(load_engine(config))


class ThreadedEngineClient:
    """One engine, one thread, and at any time the streams of one event loop. Request ids must be unique."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._max_waiting = engine.config.scheduler.max_waiting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._num_posted = 0
        self._finish_times: deque[float] = deque(maxlen=32)
        self._draining = False
        self._idle: asyncio.Event | None = None
        self._thread = EngineThread(engine, self._deliver)

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def stats(self) -> EngineStats:
        return replace(self._engine.stats(), num_requests_waiting=self._thread.num_waiting(self._num_posted))

    def check_health(self) -> None:
        """Raise EngineUnavailableError when the engine thread is dead or stopped."""
        if self._thread.closed:
            raise EngineUnavailableError("the engine has stopped")

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """See `api.EngineClient.submit`. A read of the stream that is cancelled does not close it."""
        self._check_accepting()
        if request.request_id in self._inboxes:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use", param="request_id")
        self._engine.check(request)
        self._check_queue()
        self._bind_loop()
        # The loop is bound before the post: should the thread die in between, either the post or its delivery tells us.
        self._thread.post(Add(request))
        self._num_posted += 1
        inbox = Inbox()
        self._inboxes[request.request_id] = inbox
        return TokenStream(inbox, lambda: self._abandon(request.request_id))

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """End a sequence at the next step boundary; unknown or finished ids are ignored."""
        if request_id in self._inboxes:
            self._end(request_id, reason)

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests, wait for the open ones; False when some had to be aborted at the deadline."""
        self._draining = True
        if await self._wait_idle(timeout_seconds):
            return True
        for request_id in tuple(self._inboxes):
            self._end(request_id, FinishReason.ABORTED)
        await self._wait_idle(ABORT_GRACE_SECONDS)
        return False

    async def close(self) -> None:
        """Abort what is left and wait for the engine thread to end. A second call is fine."""
        self._draining = True
        with suppress(EngineUnavailableError):
            self._thread.post(Stop())
        await asyncio.to_thread(self._thread.join)

    def _check_accepting(self) -> None:
        self.check_health()
        if self._draining:
            raise EngineUnavailableError("the engine is shutting down and takes no new requests")

    def _check_queue(self) -> None:
        num_waiting = self._thread.num_waiting(self._num_posted)
        if num_waiting >= self._max_waiting:
            raise QueueFullError(
                f"{num_waiting} requests are waiting, the limit is {self._max_waiting}; try again later",
                retry_after_seconds=self._retry_after_seconds(),
            )

    def _retry_after_seconds(self) -> int:
        """Time in which, at the recent rate, one request finishes and makes room."""
        times = self._finish_times
        if len(times) < 2:
            return 1
        # Up to now, not up to the last one: a stalled engine looks slower by the second.
        seconds = (time.monotonic() - times[0]) / (len(times) - 1)
        return min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER_SECONDS)

    def _bind_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._leave_loop()
        self._loop = loop

    def _leave_loop(self) -> None:
        if self._loop is not None and self._loop.is_closed():
            self._abandon_all()
        if self._inboxes:
            raise RuntimeError("streams of another event loop are open: an engine client serves one loop at a time")

    def _abandon_all(self) -> None:
        """Nobody can read these streams any more: give their memory back."""
        for request_id in tuple(self._inboxes):
            self._abandon(request_id)

    def _abandon(self, request_id: str) -> None:
        self._forget(request_id)
        self._end(request_id, FinishReason.ABORTED)

    def _end(self, request_id: str, reason: FinishReason) -> None:
        # A stopped engine has ended every request already.
        with suppress(EngineUnavailableError):
            self._thread.post(End(request_id, reason))

    def _forget(self, request_id: str) -> None:
        self._inboxes.pop(request_id, None)
        if self._idle is not None and not self._inboxes:
            self._idle.set()

    async def _wait_idle(self, timeout_seconds: float) -> bool:
        if not self._inboxes:
            return True
        self._idle = asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        return not self._inboxes

    def _deliver(self, delivery: Delivery) -> None:
        """Called in the engine thread, once a step."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._dispatch, delivery)
        except RuntimeError:
            self._abandon_all()  # the loop was closed

    def _dispatch(self, delivery: Delivery) -> None:
        for event in delivery.events:
            self._put(event.request_id, event, ended=event.finish is not None)
        for request_id, error in delivery.failures.items():
            self._put(request_id, error, ended=True)
        if delivery.death is not None:
            for request_id in tuple(self._inboxes):
                self._put(request_id, EngineFailureError(delivery.death), ended=True)

    def _put(self, request_id: str, item: TokenEvent | GlassError, *, ended: bool) -> None:
        inbox = self._inboxes.get(request_id)
        if inbox is None:
            return  # abandoned in the meantime
        inbox.put(item)
        if ended:
            self._finish_times.append(time.monotonic())
            self._forget(request_id)
