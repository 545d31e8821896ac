"""Our own engine without the HTTP server: what the server's throughput is measured against.

It runs in this process as it does in the server's: scheduler, runner and engine thread, with an event loop that reads
every token. What is left out is HTTP, text and the load generator.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from glass_core.api import GenerationRequest, SamplingParams, SparsityParams
from glass_core.config import EngineConfig
from glass_core.engine.client import ThreadedEngineClient, start_engine

DEFAULT_METHOD = SparsityParams().method


class OwnEngine:
    """Context manager: the engine runs inside. `method` None = the server's default, refined where it would be."""

    label = "own engine"
    pids: tuple[int, ...] = ()
    prunes = True

    def __init__(self, config: EngineConfig, *, method: str | None, max_sequences: int) -> None:
        scheduler = replace(config.scheduler, max_num_sequences=max_sequences)
        self._config = replace(config, scheduler=scheduler)
        self._method = method
        self._ids = itertools.count()

    def __enter__(self) -> Self:
        self._client: ThreadedEngineClient = start_engine(self._config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run(self._client.close())

    def stream_speed(
        self, prompts: Sequence[Sequence[int]], *, num_tokens: int, concurrency: int, sparsity: float
    ) -> float:
        """Tokens per second; raises what the engine raises."""
        requests = [self._request(prompt, num_tokens, sparsity) for prompt in prompts]
        start = time.perf_counter()
        asyncio.run(self._answer_all(iter(requests), concurrency))
        return len(prompts) * num_tokens / (time.perf_counter() - start)

    def peak_rss_bytes(self) -> None:
        """This process measures, too: its memory is not the engine's."""
        return

    def _request(self, prompt: Sequence[int], num_tokens: int, sparsity: float) -> GenerationRequest:
        info = self._client.info
        refined_up_to = info.refinement.get(info.default_profile, 0.0) if self._method is None else 0.0
        return GenerationRequest(
            request_id=f"bench-{next(self._ids)}",
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(max_tokens=num_tokens, seed=0, temperature=0.0, ignore_eos=True),
            sparsity=SparsityParams(
                sparsity,
                method=self._method or DEFAULT_METHOD,
                profile=info.default_profile,
                refine=0.0 < sparsity <= refined_up_to,
            ),
            arrival_time=time.monotonic(),
        )

    async def _answer_all(self, requests: Iterator[GenerationRequest], concurrency: int) -> None:
        """`concurrency` readers, each with one request at a time."""
        async with asyncio.TaskGroup() as readers:
            for _ in range(concurrency):
                readers.create_task(self._read(requests))

    async def _read(self, requests: Iterator[GenerationRequest]) -> None:
        for request in requests:
            stream = await self._client.submit(replace(request, arrival_time=time.monotonic()))
            async for _ in stream:
                pass
