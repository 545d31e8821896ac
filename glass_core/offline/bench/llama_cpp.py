"""llama.cpp as the peer: runs its `llama-bench` and reads the JSON it prints, and says how to start its server.

Nothing is installed or downloaded: the user gives the paths of both binaries and of a GGUF file.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_core.errors import ConfigurationError
from glass_core.offline.bench.load.process import LOOPBACK

TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class LlamaBench:
    """One `llama-bench` binary with one GGUF file and a number of threads."""

    binary: Path
    gguf: Path
    num_threads: int

    @property
    def label(self) -> str:
        """A short name for the file: its type where the name ends with one, as in model.Q4_0.gguf."""
        return self.gguf.stem.rpartition(".")[2] or self.gguf.stem

    @property
    def pids(self) -> tuple[int, ...]:
        """None: every call starts a process and waits for its end."""
        return ()

    def decode_speed(self, prompt: Sequence[int], *, num_tokens: int) -> float:
        """Tokens per second of generating after a context as long as the prompt, batch 1. llama-bench makes up its own
        tokens and samples nothing."""
        depth = str(len(prompt))
        (speed,) = self._speeds(["-p", "0", "-n", str(num_tokens), "-d", depth], "n_gen", [num_tokens])
        return speed

    def prefill_speeds(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Tokens per second of processing prompts as long as these."""
        lengths = [len(prompt) for prompt in prompts]
        return self._speeds(["-p", ",".join(map(str, lengths)), "-n", "0"], "n_prompt", lengths)

    def _speeds(self, flags: list[str], field: str, wanted: Sequence[int]) -> list[float]:
        """Its speed for each wanted value of a field; every call loads the model and warms up by itself."""
        entries = self._run([*flags, "-t", str(self.num_threads), "-r", "1", "-ngl", "0", "-o", "json"])
        found = {entry.get(field): entry.get("avg_ts") for entry in entries}
        speeds = [found.get(value) for value in wanted]
        if not all(isinstance(speed, int | float) and speed > 0 for speed in speeds):
            raise ConfigurationError(f"{self.binary}: no avg_ts for {field} = {wanted} in its output: {found}")
        return [float(speed) for speed in speeds if speed is not None]

    def description(self) -> dict[str, Any]:
        """What it says about itself and the file, for the conditions of a result."""
        entries = self._run(["-p", "0", "-n", "1", "-t", str(self.num_threads), "-r", "1", "-ngl", "0", "-o", "json"])
        keys = ("build_commit", "build_number", "cpu_info", "backends", "model_type", "model_size", "model_n_params")
        first = entries[0] if entries else {}
        return {"gguf": self.gguf.name, "threads": self.num_threads, **{key: first.get(key) for key in keys}}

    def _run(self, flags: Sequence[str]) -> list[Mapping[str, Any]]:
        command = [str(self.binary), "-m", str(self.gguf), *flags]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)  # noqa: S603
        except OSError as error:
            raise ConfigurationError(f"cannot run {self.binary}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"{self.binary} did not end within {TIMEOUT_SECONDS:g} s") from error
        if done.returncode:
            message = done.stderr.strip()[-500:]
            raise ConfigurationError(f"{self.binary} failed with status {done.returncode}: {message}")
        return _entries(self.binary, done.stdout)


def _entries(binary: Path, output: str) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(output)
    except ValueError as error:
        raise ConfigurationError(f"{binary}: its output is not JSON ({error}): {output[:200]!r}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(f"{binary}: expected a JSON list of objects, got {output[:200]!r}")
    return entries


def llama_server_command(
    binary: Path, gguf: Path, port: int, *, num_threads: int, num_slots: int, num_tokens: int
) -> list[str]:
    """llama-server on loopback with `num_slots` parallel sequences of up to `num_tokens` tokens each."""
    context = str(num_slots * num_tokens)
    places = ["--host", LOOPBACK, "--port", str(port), "-np", str(num_slots), "-c", context]
    return [str(binary), "-m", str(gguf), *places, "-t", str(num_threads), "-ngl", "0", "--no-webui"]
