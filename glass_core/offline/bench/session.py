"""A loaded runner for a benchmark, what is known about its weights, and the conditions every result carries."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glass_core.checkpoint.json_file import read_json_object
from glass_core.config import KV_CACHE_DTYPES, CacheConfig, EngineConfig
from glass_core.engine.loading import build_selector, load_runner, load_statistics
from glass_core.engine.runner_choice import NATIVE, choose_runner
from glass_core.models.registry import load_spec
from glass_core.models.spec import ModelSpec
from glass_core.offline.bench.traffic import StepTraffic, image_step_traffic, step_traffic
from glass_core.offline.generation import BLOCK_SIZE, blocks_for, cache_for
from glass_core.offline.provenance import surroundings
from glass_core.runners.base import Runner
from glass_core.runners.native.image import ImageHeader, image_path, read_image
from glass_core.sparsity.plan import SparsityPlan
from glass_core.sparsity.selection import PlanSelector

if TYPE_CHECKING:
    from glass_core.offline.bench.random_model import RandomModel  # and with it the GGUF library

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Session:
    """A runner ready to be timed. `image` is the weight image it runs on, None for a runner without one."""

    config: EngineConfig
    runner: Runner
    selector: PlanSelector
    image: ImageHeader | None

    @property
    def spec(self) -> ModelSpec:
        return self.runner.spec

    def traffic(self, plans: Sequence[SparsityPlan | None], num_keys: float) -> StepTraffic:
        """Bytes of a decode step with one row per plan, each attending to `num_keys` keys on average."""
        if self.image is not None:
            kv_cache_dtype = self.config.cache.kv_cache_dtype
            return image_step_traffic(self.image, plans, num_keys=num_keys, kv_cache_dtype=kv_cache_dtype)
        return step_traffic(
            self.spec,
            [None if plan is None else plan.budgets for plan in plans],
            num_keys=num_keys,
            bytes_per_weight=DTYPE_BYTES[self.config.dtype],
        )

    def conditions(self, settings: Mapping[str, Any], command: str) -> dict[str, Any]:
        """What a result must say about how it came about. `settings` are the benchmark's own."""
        return {
            "model": self.config.model_name,
            "runner": self.config.runner,
            "dtype": self.config.dtype,
            "quantization": self.config.dtype if self.image is None else self.image.format,
            "device": self.config.device,
            "kv_cache_dtype": self.runner.kv_cache_dtype,
            "threads": self.runner.num_threads,
            "isa": instruction_set(self.runner),
            **settings,
            **surroundings(command),
        }


@contextmanager
def open_session(config: EngineConfig, *, num_sequences: int, num_tokens: int) -> Iterator[Session]:
    """Load the runner with KV memory for exactly so many sequences of so many tokens, whatever the config says."""
    spec = load_spec(read_json_object(config.model_path / "config.json"))
    chosen = choose_runner(config).config
    sized = replace(chosen, cache=_cache(chosen, spec, num_sequences, num_tokens))
    runner = load_runner(sized)
    try:
        yield Session(sized, runner, _selector(sized, runner), _find_image(sized))
    finally:
        runner.close()


@contextmanager
def open_random_session(
    model: "RandomModel",
    *,
    num_threads: int | None,
    num_sequences: int,
    num_tokens: int,
    kv_cache_dtype: str = KV_CACHE_DTYPES[0],
) -> Iterator[Session]:
    """As `open_session` for a random model, which is an image and nothing else: the native runner's only."""
    from glass_core.runners.native.runner import NativeRunner  # noqa: PLC0415  needs the compiled extension

    header = read_image(image_path(model.folder, model.image_format))
    config = EngineConfig(
        model.folder,
        model.folder.name,
        runner=NATIVE,
        dtype=model.image_format,
        num_threads=num_threads,
        cache=CacheConfig(kv_cache_dtype=kv_cache_dtype),
    )
    sized = replace(config, cache=_cache(config, header.spec, num_sequences, num_tokens))
    runner = NativeRunner(header, sized.cache, num_threads=num_threads)
    runner.choose_ffn_paths_by_cost()
    try:
        yield Session(sized, runner, _selector(sized, runner), header)
    finally:
        runner.close()


def _find_image(config: EngineConfig) -> ImageHeader | None:
    """The weight image a config's runner uses; None where it uses none."""
    return read_image(image_path(config.model_path, config.dtype)) if config.runner == NATIVE else None


def instruction_set(runner: Runner) -> str | None:
    """What the kernels use, as far as the runner or its framework says."""
    if runner.isa is not None:
        return runner.isa
    torch = sys.modules.get("torch")
    return None if torch is None else f"torch {torch.backends.cpu.get_cpu_capability()}"


def _cache(config: EngineConfig, spec: ModelSpec, num_sequences: int, num_tokens: int) -> CacheConfig:
    """The config's cache with room for so many sequences, and no more."""
    if config.runner == NATIVE:
        from glass_core.runners.native.runner import kv_block_bytes  # noqa: PLC0415  needs the compiled extension

        block_bytes = kv_block_bytes(spec, BLOCK_SIZE, config.cache.kv_cache_dtype)
        kv_cache_bytes = num_sequences * blocks_for(num_tokens) * block_bytes
    else:
        size = DTYPE_BYTES.get(config.dtype, 2)
        needed = cache_for(spec, num_sequences=num_sequences, num_tokens=num_tokens, bytes_per_value=size)
        kv_cache_bytes = needed.kv_cache_bytes
    return replace(config.cache, block_size=BLOCK_SIZE, kv_cache_bytes=kv_cache_bytes)


def _selector(config: EngineConfig, runner: Runner) -> PlanSelector:
    found = load_statistics(config, runner.fingerprint)
    return build_selector(runner, None if found is None else found[0])
