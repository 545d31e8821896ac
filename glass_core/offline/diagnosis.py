"""Checks behind `glass doctor`: what this machine has, and whether `glass serve` with its defaults would start."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from glass_core.checkpoint.prepared import PreparedCheckpoint, open_prepared
from glass_core.config import DEFAULT_MODEL, PREPARED_MANIFEST, CacheConfig, EngineConfig, glass_home, models_directory
from glass_core.engine.loading import load_statistics, runner_names
from glass_core.engine.runner_choice import NATIVE, PREFERENCE
from glass_core.errors import GlassError
from glass_core.offline.automatic_default import automatic_default
from glass_core.offline.ffn_cost_report import describe, known_costs
from glass_core.runners.native.checkpoint_image import available_formats, open_image
from glass_core.runners.native.extension import ISA_VARIABLE, load_extension, requested_isa, why_missing
from glass_core.runners.native.huge_pages import huge_page_bytes
from glass_core.runners.native.image import ImageHeader, verify_payload
from glass_core.runners.native.processor import cpu_info, cpu_model, num_cores

MIN_PYTHON = (3, 11)
# instruction sets that decide how fast a runner can be
_NOTABLE_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "neon", "asimd")
_SERVER_PACKAGES = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "tokenizers", "safetensors", "numpy")


class Status(StrEnum):
    """FAIL: `glass serve` with its defaults would not start. WARN: something works less well, or is missing."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    status: Status
    detail: str


def diagnose() -> list[Finding]:
    """All checks, cheap ones first."""
    findings = [_python(), *_packages(), _processor(), _memory(), _cache_folder(), *_runners(), *_instruction_set()]
    return [*findings, *_models(), *_ffn_costs()]


def has_failed(findings: list[Finding]) -> bool:
    """Whether the default server would not start."""
    return any(finding.status is Status.FAIL for finding in findings)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    status = Status.OK if sys.version_info >= MIN_PYTHON else Status.FAIL
    return Finding("python", status, f"{version} ({sys.executable})")


def _packages() -> Iterator[Finding]:
    missing = [name for name in _SERVER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("server packages", Status.FAIL, f"missing: {', '.join(missing)}; pip install glass-serve")
    else:
        yield Finding("server packages", Status.OK, ", ".join(_SERVER_PACKAGES))
    yield _torch()


def _torch() -> Finding:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Finding("torch", Status.WARN, "absent: torch_runner and the offline tools need glass-serve[torch]")
    return Finding("torch", Status.OK, version)


def _processor() -> Finding:
    info = cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    notable = ", ".join(flag for flag in _NOTABLE_FLAGS if flag in flags) or "no notable instruction sets found"
    return Finding("processor", Status.OK, f"{cpu_model()}, {num_cores()} cores; {notable}")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Finding("memory", Status.WARN, "cannot be determined on this system")
    kv = CacheConfig().kv_cache_bytes / (1 << 30)
    cache = (
        f"the KV cache ({CacheConfig().kv_cache_dtype}) takes up to {kv:.1f} GiB by default, page by page as it fills"
    )
    detail = f"{total / (1 << 30):.1f} GiB; {cache}"
    return Finding("memory", Status.OK, detail)


def _cache_folder() -> Finding:
    """The models' home must be writable for `glass pull`; a server only reads it."""
    home = glass_home()
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if os.access(existing, os.W_OK):
        return Finding("cache folder", Status.OK, str(home))
    return Finding("cache folder", Status.WARN, f"{home} is not writable; set GLASS_HOME to pull models")


def _runners() -> Iterator[Finding]:
    """A server needs one runner; which of them is missing only matters for speed, or for the offline tools."""
    problems = {name: _runner_problem(name) for name in runner_names()}
    default = next((name for name in PREFERENCE if name in problems and problems[name] is None), None)
    for name, problem in problems.items():
        if problem is None:
            yield Finding(f"runner {name}", Status.OK, "available" + (" (default)" if name == default else ""))
        else:
            status = Status.FAIL if default is None else Status.WARN
            yield Finding(f"runner {name}", status, f"unavailable: {problem}")


def _runner_problem(name: str) -> str | None:
    """Why a runner cannot be used here, whatever the model."""
    try:
        importlib.import_module(f"glass_core.runners.{name}")
    except ImportError as error:
        return str(error)
    return why_missing() if name == NATIVE else None


def _instruction_set() -> Iterator[Finding]:
    """Which of the native runner's kernels run here, and why the others do not."""
    if why_missing() is not None:
        return
    kernels = load_extension().kernels
    try:
        chosen = kernels.choose_isa(requested_isa())
    except ValueError as error:
        yield Finding("instruction set", Status.FAIL, f"{ISA_VARIABLE}: {error}")
        return
    states = kernels.isa_states()
    missing = "".join(f"; not {name}: {problem}" for name, problem, _ in states if problem)
    available = ", ".join(name for name, problem, _ in states if not problem)
    status = Status.WARN if any(defective for _, _, defective in states) else Status.OK
    yield Finding("instruction set", status, f"{chosen} of {available}{missing}")


def _models() -> Iterator[Finding]:
    pulled = sorted(path.parent for path in models_directory().glob(f"*/{PREPARED_MANIFEST}"))
    if DEFAULT_MODEL not in (path.name for path in pulled):
        yield Finding(f"model {DEFAULT_MODEL}", Status.FAIL, f"not pulled: run `glass pull {DEFAULT_MODEL}`")
    for path in pulled:
        yield _model(path)
        yield from _automatic(path)


def _ffn_costs() -> Iterator[Finding]:
    for name, costs in known_costs():
        yield Finding(f"FFN costs {name}", Status.OK, describe(costs))


def _model(path: Path) -> Finding:
    """Whether a pulled model opens, and which artifact fits it."""
    subject = f"model {path.name}"
    try:
        checkpoint = open_prepared(path)
        found = load_statistics(EngineConfig(model_path=path, model_name=path.name), checkpoint.fingerprint)
        images = _images(checkpoint)
    except GlassError as error:
        status = Status.FAIL if path.name == DEFAULT_MODEL else Status.WARN
        return Finding(subject, status, str(error))
    size = f"{checkpoint.spec.model_type}, fingerprint {checkpoint.fingerprint[:12]}; {images}"
    if found is None:
        return Finding(subject, Status.WARN, f"{size}; no artifact: A-GLASS needs `glass calibrate {path.name}`")
    refines = "has" if found[0].refinement else "lacks"
    detail = f"{size}; artifact {found[1].name} matches and {refines} thresholds for glass_refine"
    return Finding(subject, Status.OK, detail)


def _automatic(path: Path) -> Iterator[Finding]:
    """What requests to a model get that say nothing about sparsity; nothing for a model that has a finding already."""
    try:
        checkpoint = open_prepared(path)
        found = load_statistics(EngineConfig(model_path=path, model_name=path.name), checkpoint.fingerprint)
    except GlassError:
        return
    if found is None:
        return
    default = automatic_default(checkpoint.spec, found[0])
    subject = f"auto sparsity {path.name}"
    if default is None:
        advice = f"`glass calibrate {path.name} --only expected-kl` measures it"
        yield Finding(subject, Status.WARN, f"dense: the artifact has no expected KL; {advice}")
    else:
        yield Finding(subject, Status.OK, default.describe())


def _in_huge_pages(header: ImageHeader) -> str:
    share = huge_page_bytes(header.path) / header.path.stat().st_size
    return f"{share:.0%} in 2-MB pages"


def _images(checkpoint: PreparedCheckpoint) -> str:
    """The weight images of a model, each read once to see that it is intact. Raises CheckpointError when one is not."""
    described = []
    for name in available_formats(checkpoint.model_dir):
        header = open_image(checkpoint, name)
        verify_payload(header)
        size = f"{header.path.stat().st_size / 1e6:.0f} MB"
        described.append(f"{name} image ({'exact' if header.exact else 'nearest'}, {size}, {_in_huge_pages(header)})")
    return ", ".join(described) or "no weight image yet (made at the first start)"
