"""Prompts that begin alike, through an engine on a real runner of a tiny model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glass_core.api import SparsityParams
from glass_core.config import CacheConfig, EngineConfig, SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.runners.base import Runner
from tests.core.engine_builders import DENSE, GRIFFIN, CountingSelector, make_request, run_to_end, tokens_of
from tests.parity.variants import random_tokens

MILD = SparsityParams(sparsity=0.3, method="griffin")
CACHE = CacheConfig(block_size=4, kv_cache_bytes=1 << 19)


@dataclass(frozen=True, slots=True)
class Served:
    """`plans` and `bits` (of the statistics) in the order of selection; `num_hits` tokens came from the cache."""

    answers: dict[str, list[int]]
    plans: list[str]
    bits: list[bytes]
    num_hits: int


def serve_alike(
    runner: Runner, *, enable_prefix_caching: bool, sparsities: Sequence[SparsityParams] = (GRIFFIN, MILD, DENSE)
) -> Served:
    """Serve every prompt at these sparsities at once, in small chunks; `runner` has `CACHE`."""
    selector = CountingSelector(runner)
    config = EngineConfig(
        model_path=Path("unused"),
        model_name="tiny",
        scheduler=SchedulerConfig(max_num_sequences=3, max_step_tokens=13),
        cache=CacheConfig(CACHE.block_size, CACHE.kv_cache_bytes, enable_prefix_caching=enable_prefix_caching),
    )
    engine = Engine(runner, selector, config)
    answers = {}
    for index, prompt in enumerate(_prompts()):
        for number, sparsity in enumerate(sparsities):
            engine.add(make_request(f"{index} {number}", prompt, max_tokens=6, sparsity=sparsity))
        events = run_to_end(engine)
        answers.update({event.request_id: tokens_of(events, event.request_id) for event in events})
    return Served(answers, selector.plans, selector.bits_seen, engine.stats().prefix_cache_hits)


def _prompts() -> list[tuple[int, ...]]:
    prompt = random_tokens(21, seed=3)
    head = prompt[:18]
    return [(*head, 7, 8), prompt, (*head, 9), (*prompt, 11, 12, 13, 14), (*prompt[:10], 1, 2), prompt]
