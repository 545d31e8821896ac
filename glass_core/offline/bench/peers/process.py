"""A peer's child process, asked over pipes: transformers in this interpreter, vLLM in one of its own environment.

The model is loaded once and stays loaded while both sides take turns; a peer that waits reads from a pipe and computes
nothing. Nothing is installed.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.process import STOP_SECONDS, peak_rss_of

ANSWER_SECONDS = 900.0
_CHILD = Path(__file__).with_name("child.py")
# An engine in the child's own process, the memory of its cache in GiB, and nothing sent anywhere
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class PeerCommand:
    """How a child is started. `side` is one of `child.SIDES`, `model` a Hugging Face folder in bfloat16; it must hold
    `max_sequences` sequences of `max_tokens` tokens at once."""

    side: str
    python: Path
    model: Path
    num_threads: int
    max_tokens: int
    max_sequences: int

    def words(self) -> list[str]:
        flags = {
            "--side": self.side,
            "--model": self.model,
            "--threads": self.num_threads,
            "--max-tokens": self.max_tokens,
            "--max-sequences": self.max_sequences,
        }
        return [str(self.python), str(_CHILD), *(str(word) for flag in flags.items() for word in flag)]

    def environment(self) -> dict[str, str]:
        """Ours, without what would let the child import from here; its interpreter's folder first among programs, where
        a compiler's helpers lie."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        path = os.pathsep.join([str(self.python.parent), kept.get("PATH", "")])
        return {**kept, **_ENVIRONMENT, "PATH": path, "OMP_NUM_THREADS": str(self.num_threads)}


class ChildPeer:
    """Context manager: the model is loaded on entry, the process is gone on exit.

    Raises ConfigurationError, with the end of what the child printed, when it ends early, answers an error or takes
    longer than ANSWER_SECONDS.
    """

    def __init__(self, command: PeerCommand) -> None:
        self.command = command
        self.versions: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        self._log: IO[bytes] = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                self.command.words(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=self.command.environment(),
                cwd=self.command.model,  # children of its own would import what lies where we were started
                text=True,
            )
        except OSError as error:
            self._log.close()
            raise ConfigurationError(f"cannot run {self.command.python}: {error.strerror}") from error
        try:
            self.versions = self._read()["versions"]
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def label(self) -> str:
        return f"{self.command.side} bf16"

    @property
    def pids(self) -> tuple[int, ...]:
        return (self._process.pid,)

    def prefill_speeds(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Prompt tokens per second, up to the first token."""
        return [len(prompt) / self._seconds(task="prefill", prompt=list(prompt)) for prompt in prompts]

    def decode_speed(self, prompt: Sequence[int], *, num_tokens: int) -> float:
        """Tokens per second after the first one, batch 1."""
        return num_tokens / self._seconds(task="decode", prompt=list(prompt), num_tokens=num_tokens)

    @property
    def prunes(self) -> bool:
        return False

    def stream_speed(
        self, prompts: Sequence[Sequence[int]], *, num_tokens: int, concurrency: int, sparsity: float
    ) -> float:
        """Tokens per second of all prompts' answers, `concurrency` at a time, their prompts' time included. Dense
        whatever the sparsity."""
        ids = [list(prompt) for prompt in prompts]
        seconds = self._seconds(task="streams", prompts=ids, num_tokens=num_tokens, concurrency=concurrency)
        return len(prompts) * num_tokens / seconds

    def peak_rss_bytes(self) -> int | None:
        """Largest resident set so far; None where /proc does not say."""
        return peak_rss_of(self._process.pid)

    def description(self) -> dict[str, Any]:
        """For the conditions of a result."""
        return {"peer": self.label, "threads": self.command.num_threads, **self.versions}

    def _seconds(self, **request: object) -> float:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise ConfigurationError(f"{self.label} failed: {answer['error']}")
        return float(answer["seconds"])

    def _read(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        with _killed_after(self._process, ANSWER_SECONDS):
            line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise ConfigurationError(f"{self.label} gave no answer: {self._log_tail() or line[:200]!r}") from None
        return answer

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace").strip()[-800:]

    def _stop(self) -> None:
        """The end of its input ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with _killed_after(self._process, STOP_SECONDS):
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
