"""What a loaded engine says about itself: EngineInfo, with notes on what it lacks."""

from glass_core.api import EngineInfo
from glass_core.config import EngineConfig
from glass_core.runners.base import Runner
from glass_core.sparsity.selection import PlanSelector


def describe(
    runner: Runner, selector: PlanSelector, config: EngineConfig, max_model_len: int, artifact: str | None
) -> EngineInfo:
    """What an engine on this runner, with this selector, tells of itself."""
    spec = runner.spec
    return EngineInfo(
        model_name=config.model_name,
        fingerprint=runner.fingerprint,
        runner=config.runner,
        dtype=config.dtype,
        device=runner.device,
        max_model_len=max_model_len,
        vocab_size=spec.vocab_size,
        num_layers=spec.num_layers,
        intermediate_size=spec.intermediate_size,
        num_parameters=runner.num_parameters,
        methods=selector.methods,
        profiles=selector.profiles,
        unavailable_methods=dict(selector.unavailable),
        artifact=artifact,
        default_profile=selector.default_profile,
        refinement=selector.refinable,
        expected_kl=selector.expected_kl,
        notes=_notes(runner, selector, config, max_model_len, artifact),
        isa=runner.isa,
        num_threads=runner.num_threads,
        kv_cache_dtype=runner.kv_cache_dtype,
    )


def _notes(
    runner: Runner, selector: PlanSelector, config: EngineConfig, max_model_len: int, artifact: str | None
) -> tuple[str, ...]:
    notes = []
    if artifact is None:
        notes.append("no global-statistics artifact: methods that need one are unavailable; run `glass calibrate`")
    elif selector.refinement_problem is not None:
        notes.append(f"glass_refine is unavailable: {selector.refinement_problem}")
    if artifact is not None and not selector.expected_kl:
        notes.append(
            "glass_sparsity auto is unavailable: the artifact has no expected KL; "
            "`glass calibrate MODEL --only expected-kl` measures it"
        )
    longest = runner.spec.max_position_embeddings
    if config.max_model_len is None and max_model_len < longest:
        notes.append(f"the KV cache holds {max_model_len} of the model's {longest} positions; raise kv_cache_bytes")
    return tuple(notes)
