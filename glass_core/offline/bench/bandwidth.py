"""How fast this machine reads memory: the limit that the bytes of a decode step are measured against.

As many threads as the engine has, each taking the maximum of its own part of a buffer: numpy does that with the widest
loads there are and without holding the interpreter's lock. What fits the caches is read faster than what does not, so a
limit is measured at the size that is read, beside what it limits, and at two fixed sizes for comparison.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np

from glass_core.runners.native.processor import num_cores

CACHED_BYTES = 32 << 20
UNCACHED_BYTES = 512 << 20
_LEAST_BYTES = 1 << 20  # below, threads cost more than reading
_READ_BYTES = 256 << 20  # in one measurement, at least


class ReadBandwidth:
    """Context manager that holds the threads and the buffer."""

    def __init__(self, num_threads: int | None) -> None:
        """`num_threads` None = as many as cores, as the engine's."""
        self._num_threads = num_threads or num_cores()

    def __enter__(self) -> Self:
        self._buffer = np.ones(UNCACHED_BYTES // 4, np.uint32)
        self._pool = ThreadPoolExecutor(self._num_threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def measure(self, num_bytes: int) -> float:
        """GB/s of reading so many bytes again and again; sizes beyond UNCACHED_BYTES count as that."""
        size = min(max(num_bytes, _LEAST_BYTES), UNCACHED_BYTES)
        parts = np.array_split(self._buffer[: size // 4], self._num_threads)
        passes = -(-_READ_BYTES // size)
        list(self._pool.map(np.max, parts))  # into the caches
        start = time.perf_counter()
        for _ in range(passes):
            list(self._pool.map(np.max, parts))
        return passes * size / (time.perf_counter() - start) / 1e9

    def limits(self) -> dict[str, Any]:
        """For the conditions of a result."""
        return {
            "threads": self._num_threads,
            "cached_bytes": CACHED_BYTES,
            "cached_gb_per_second": self.measure(CACHED_BYTES),
            "uncached_bytes": UNCACHED_BYTES,
            "uncached_gb_per_second": self.measure(UNCACHED_BYTES),
        }
