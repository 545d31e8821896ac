"""A hundred answers of the default model, in batches of a dozen and one by one: the same tokens, whatever the plans.

The batches also chunk the prompts and share cached prefixes; the single requests do neither.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from glass_core.api import GenerationRequest, SamplingParams, SparsityParams
from glass_core.config import CacheConfig, EngineConfig, SchedulerConfig
from glass_core.engine.engine import Engine
from glass_core.engine.loading import assemble_engine, load_runner
from glass_core.text import TextProcessor, load_text_processor
from tests.core.engine_builders import run_to_end, tokens_of

pytest.importorskip("glass_core.runners.native._native")
pytestmark = [pytest.mark.model, pytest.mark.slow]

TEMPLATES = (
    "Explain {} to a child.",
    "Write two sentences about {}.",
    "Why do people like {}?",
    "List three facts about {}, and say where each comes from.",
    "Translate '{}' into French.",
    "What would the world be without {}?",
    "Tell me a joke about {}. It should be short, friendly and fit for a family dinner with many guests.",
    "Give me a title for a book about {}.",
    "Is {} older than writing? Answer yes or no, then explain.",
    "{}",
)
SUBJECTS = (
    "rain",
    "the number 7",
    "prime numbers",
    "bread and butter",
    "the Roman Empire",
    "bicycles",
    "black holes",
    "def f(x): return x",
    "tea in Japan",
    "an elephant's memory",
)
PLANS = (
    SparsityParams(),
    SparsityParams(sparsity=0.3, lambda_=0.2, profile="sensitivity"),
    SparsityParams(sparsity=0.5, lambda_=0.5, profile="sensitivity"),
    SparsityParams(sparsity=0.5, method="griffin"),
    SparsityParams(sparsity=0.7, lambda_=0.9),
)
NUM_TOKENS = 24


@contextmanager
def engine_of(model_dir: Path, scheduler: SchedulerConfig, *, prefix_caching: bool) -> Iterator[Engine]:
    cache = CacheConfig(kv_cache_bytes=64 << 20, enable_prefix_caching=prefix_caching)
    config = EngineConfig(model_dir, "real", runner="native", dtype="int4", scheduler=scheduler, cache=cache)
    runner = load_runner(config)
    try:
        yield assemble_engine(runner, config)
    finally:
        runner.close()


def make_requests(text: TextProcessor) -> list[GenerationRequest]:
    """All templates with all subjects, every plan on its turn."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS, seed=0, temperature=0.0, ignore_eos=True)
    requests = []
    for index, (template, subject) in enumerate(product(TEMPLATES, SUBJECTS)):
        prompt = text.encode(text.render_chat([{"role": "user", "content": template.format(subject)}]))
        plan = PLANS[(index + index // len(SUBJECTS)) % len(PLANS)]
        requests.append(GenerationRequest(f"r{index}", tuple(prompt), sampling, plan, time.monotonic()))
    return requests


def answer(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, list[int]]:
    for request in requests:
        engine.add(request)
    events = run_to_end(engine)
    return {request.request_id: tokens_of(events, request.request_id) for request in requests}


def test_batches_equal_singles(default_model: Path) -> None:
    requests = make_requests(load_text_processor(default_model))
    singly: dict[str, list[int]] = {}
    with engine_of(default_model, SchedulerConfig(max_num_sequences=1), prefix_caching=False) as engine:
        for request in requests:
            singly |= answer(engine, [request])
    shuffled = random.Random(0).sample(requests, len(requests))
    together = SchedulerConfig(max_num_sequences=12, max_step_tokens=90)
    with engine_of(default_model, together, prefix_caching=True) as engine:
        batched = answer(engine, shuffled)
        assert engine.stats().prefix_cache_hits > 0
    assert len(singly) == 100
    assert {len(tokens) for tokens in singly.values()} == {NUM_TOKENS}
    assert len({tuple(tokens) for tokens in singly.values()}) > 90  # the prompts do ask different things
    assert batched == singly
