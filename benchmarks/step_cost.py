"""CPU time of the engine's Python around a native step: scheduling, rows and arrays, results, costs, events.

    python benchmarks/step_cost.py --streams 1,8,32

The real engine decodes on the real runner, without HTTP. What is reported is CPU time of the engine's thread (not wall
time, so a busy machine disturbs it little), less what it spent inside the extension: `first` is the step that prefills
all prompts, selection included, `decode` the smallest and the median of the steps after it.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from glass_core.api import GenerationRequest, SamplingParams, SparsityParams
from glass_core.config import CacheConfig, EngineConfig
from glass_core.engine.engine import Engine
from glass_core.engine.loading import load_engine
from glass_core.runners.native import runner as native_runner
from glass_core.runners.native.extension import load_extension

MODEL = Path.home() / ".cache/glass/models/smollm2-135m"
NUM_WARM_STEPS = 10


class TimedModel:
    """Passes everything on to the extension's model and adds up the CPU time of its steps."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(self, *args: Any) -> Any:
        started = time.thread_time()
        output = self._model.step(*args)
        self.seconds += time.thread_time() - started
        return output


class TimedModule:
    """The extension, whose one model is timed."""

    def __init__(self, extension: Any) -> None:
        self._extension = extension
        self.model: TimedModel | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extension, name)

    def Model(self, *args: Any) -> TimedModel:
        self.model = TimedModel(self._extension.Model(*args))
        return self.model


def load_timed(model_path: Path) -> tuple[Engine, TimedModel]:
    module = TimedModule(load_extension())
    cache = CacheConfig(kv_cache_bytes=1 << 29, enable_prefix_caching=False)  # every round computes its prompts
    config = EngineConfig(model_path=model_path, model_name="timed", runner="native", cache=cache)
    with patch.object(native_runner, "load_extension", lambda: module):
        engine = load_engine(config)
    assert module.model is not None
    return engine, module.model


def step_seconds(engine: Engine, model: TimedModel) -> float:
    """CPU time of one step outside the extension."""
    started, inside = time.thread_time(), model.seconds
    engine.step()
    return time.thread_time() - started - (model.seconds - inside)


def measure(engine: Engine, model: TimedModel, num_streams: int, arguments: argparse.Namespace) -> Sequence[float]:
    """Seconds of each step: the prefill, then `--steps` of decoding."""
    num_steps = NUM_WARM_STEPS + arguments.steps
    sampling = SamplingParams(max_tokens=num_steps + 8, seed=0, temperature=0.0, ignore_eos=True)
    sparsity = SparsityParams(sparsity=arguments.sparsity, profile=engine.info.default_profile)
    ids = [f"stream-{index}" for index in range(num_streams)]
    for index, request_id in enumerate(ids):
        prompt = tuple(range(100 + index, 100 + index + arguments.prompt))
        engine.add(GenerationRequest(request_id, prompt, sampling, sparsity, time.monotonic()))
    seconds = [step_seconds(engine, model) for _ in range(num_steps + 1)]
    for request_id in ids:
        engine.abort(request_id)
    engine.take_events()
    return [seconds[0], *seconds[1 + NUM_WARM_STEPS :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,8,32", help="numbers of sequences at a time (default: 1,8,32)")
    parser.add_argument("--steps", type=int, default=100, help="steps of decoding (default: 100)")
    parser.add_argument("--prompt", type=int, default=40, help="tokens of each prompt (default: 40)")
    parser.add_argument("--sparsity", type=float, default=0.5, help="of all requests; 0 = dense (default: 0.5)")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model (default: smollm2-135m)")
    arguments = parser.parse_args()
    engine, model = load_timed(arguments.model)
    measure(engine, model, 1, arguments)  # ranks of the model's side and warm memory
    for num_streams in map(int, arguments.streams.split(",")):
        first, *decode = (1e6 * seconds for seconds in measure(engine, model, num_streams, arguments))
        print(
            f"{num_streams:3} streams: first {first:7.0f} us, decode {min(decode):6.1f} us a step at least, "
            f"median {statistics.median(decode):6.1f}",
            flush=True,
        )
    engine.close()


if __name__ == "__main__":
    main()
