"""One run of the decode benchmark: load the runner with just enough KV memory, measure, say under which conditions."""

from dataclasses import asdict, replace
from typing import Any

from glass_core.checkpoint.json_file import read_json_object
from glass_core.config import EngineConfig
from glass_core.engine.loading import load_statistics
from glass_core.models.registry import load_spec
from glass_core.offline.bench.decode import DecodeSettings, measure_decode, random_prompts
from glass_core.offline.generation import cache_for
from glass_core.offline.progress import Progress
from glass_core.offline.provenance import machine, versions
from glass_core.runners import load_runner
from glass_core.sparsity.selection import PlanSelector


def run_decode(config: EngineConfig, settings: DecodeSettings, progress: Progress) -> dict[str, Any]:
    """The result file's content: `conditions` and `rows`. The config's KV budget is replaced by what is needed."""
    spec = load_spec(read_json_object(config.model_path / "config.json"))
    cache = cache_for(
        spec,
        num_sequences=len(settings.sparsities) * settings.batch_size,
        num_tokens=settings.max_sequence_tokens,
        bytes_per_value=settings.bytes_per_weight,
    )
    runner = load_runner(replace(config, cache=cache))
    found = load_statistics(config, runner.fingerprint)
    selector = PlanSelector(
        num_layers=spec.num_layers,
        intermediate_size=spec.intermediate_size,
        statistics=None if found is None else found[0],
        magnitudes=runner.neuron_magnitudes,
    )
    rows = measure_decode(runner, selector, settings, random_prompts(settings, spec.vocab_size), progress)
    runner.close()
    return {"conditions": _conditions(config, settings), "rows": rows}


def _conditions(config: EngineConfig, settings: DecodeSettings) -> dict[str, Any]:
    return {
        "model": config.model_name,
        "runner": config.runner,
        "dtype": config.dtype,
        "device": config.device,
        "threads": config.num_threads,
        **asdict(settings),
        "machine": machine(),
        "versions": versions(),
    }
