"""EngineThread: the one thread that touches the engine. Commands come in through a deque, a delivery goes out a step.

It sleeps on a condition while there is nothing to do; a command wakes it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from glass_core.api import FinishReason, GenerationRequest, TokenEvent
from glass_core.engine.engine import Engine
from glass_core.engine.failures import StepFailedError
from glass_core.errors import EngineFailureError, EngineUnavailableError, GlassError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Add:
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class End:
    """End a request with this reason; ABORTED is an abort."""

    request_id: str
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Stop:
    """Abort everything and leave the thread."""


Command = Add | End | Stop


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one step brought. `death` ends every open stream, those of requests not yet taken over included."""

    events: list[TokenEvent] = field(default_factory=list)
    failures: Mapping[str, GlassError] = field(default_factory=dict)
    death: str | None = None


class EngineThread:
    """Runs the engine until `Stop` or until something unexpected kills it. `deliver` is called from this thread."""

    def __init__(self, engine: Engine, deliver: Callable[[Delivery], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._num_taken = 0
        self._thread = threading.Thread(target=self._run, name="glass-engine", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the thread has ended or is ending: nothing can be posted any more."""
        return self._closed

    def num_waiting(self, num_posted: int) -> int:
        """Requests posted but not admitted, given how many `Add`s were posted. May count one twice, never misses one.

        The thread queues a request first and counts it as taken second, so it must be read the other way around.
        """
        num_on_the_way = num_posted - self._num_taken
        return num_on_the_way + self._engine.num_waiting

    def post(self, command: Command) -> None:
        """Raises EngineUnavailableError when nobody would ever read the command."""
        with self._wake:
            if self._closed:
                raise EngineUnavailableError("the engine has stopped")
            self._commands.append(command)
            self._wake.notify()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException:
            logger.critical("the engine thread died", exc_info=True)
            self._die()

    def _serve(self) -> bool:
        """One turn: commands, a step, one delivery. False after `Stop`."""
        failures: dict[str, GlassError] = {}
        for command in self._take_commands():
            match command:
                case Add(request):
                    self._add(request, failures)
                case End(request_id, reason):
                    self._engine.finish(request_id, reason)
                case Stop():
                    self._shut_down(failures)
                    return False
        self._hand_over(self._step(failures), failures)
        return True

    def _take_commands(self) -> list[Command]:
        with self._wake:
            self._wake.wait_for(lambda: self._commands or self._engine.has_work)
            commands = list(self._commands)
            self._commands.clear()
        return commands

    def _add(self, request: GenerationRequest, failures: dict[str, GlassError]) -> None:
        try:
            self._engine.add(request)
        except GlassError as error:
            failures[request.request_id] = error
        self._num_taken += 1

    def _step(self, failures: dict[str, GlassError]) -> list[TokenEvent]:
        if not self._engine.has_work:
            return []
        try:
            return self._engine.step()
        except StepFailedError as error:
            # An exception of its own per stream: a shared one would collect everybody's tracebacks.
            failures.update({request_id: EngineFailureError(text) for request_id, text in error.messages.items()})
            return self._engine.take_events()

    def _hand_over(self, events: list[TokenEvent], failures: Mapping[str, GlassError]) -> None:
        if events or failures:
            self._deliver(Delivery(events, failures))

    def _shut_down(self, failures: dict[str, GlassError]) -> None:
        self._close()
        for request_id in self._engine.unfinished:
            self._engine.abort(request_id)
        self._hand_over(self._engine.take_events(), failures)
        self._deliver(Delivery(death="the engine was stopped"))
        self._engine.close()

    def _die(self) -> None:
        self._close()
        self._deliver(Delivery(death="the engine stopped unexpectedly"))

    def _close(self) -> None:
        with self._wake:
            self._closed = True
