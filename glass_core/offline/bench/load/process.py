"""A server in a subprocess on a free loopback port, stopped when the benchmark ends."""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from glass_core.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def glass_command(model: str, port: int, flags: Sequence[str]) -> list[str]:
    """Our own server."""
    options = ["--host", LOOPBACK, "--port", str(port), "--no-access-log", *flags]
    return [sys.executable, "-m", "server", model, *options]


def peak_rss_of(pid: int) -> int | None:
    """Largest resident set of a running process so far; None where /proc does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


class ServerProcess:
    """Context manager: ready on entry, gone on exit.

    `ready_path` answers 200 once requests are served. Raises ConfigurationError, with the end of the server's log, when
    it exits early or is not ready in time.
    """

    def __init__(self, command: Sequence[str], port: int, ready_path: str) -> None:
        self.port = port
        self.start_seconds = 0.0
        self._command = list(command)
        self._ready_url = f"http://{LOOPBACK}:{port}{ready_path}"

    def __enter__(self) -> Self:
        self._log: IO[bytes] = tempfile.TemporaryFile()
        start = time.perf_counter()
        try:
            self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)  # noqa: S603
        except OSError as error:
            self._log.close()
            raise ConfigurationError(f"cannot run {self._command[0]}: {error.strerror}") from error
        try:
            self._wait_until_ready(start + START_SECONDS)
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.perf_counter() - start
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def peak_rss_bytes(self) -> int | None:
        """Largest resident set so far; None where /proc does not say."""
        return peak_rss_of(self._process.pid)

    def _wait_until_ready(self, deadline: float) -> None:
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.perf_counter() < deadline:
                if (status := self._process.poll()) is not None:
                    raise ConfigurationError(f"{self._name} exited with {status}: {self._log_tail()}")
                with contextlib.suppress(httpx.TransportError):
                    if client.get(self._ready_url).status_code == httpx.codes.OK:
                        return
                time.sleep(_POLL_SECONDS)
        raise ConfigurationError(f"{self._name} was not ready after {START_SECONDS:g} s: {self._log_tail()}")

    @property
    def _name(self) -> str:
        return " ".join(self._command[:3])

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace").strip()[-800:]

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
