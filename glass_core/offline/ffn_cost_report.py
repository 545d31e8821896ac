"""The FFN's cost model of pulled models, for `glass doctor`: what is known here, and measuring it again."""

from collections.abc import Iterator

from glass_core.checkpoint.prepared import open_prepared
from glass_core.config import PREPARED_MANIFEST, CacheConfig, models_directory
from glass_core.errors import GlassError
from glass_core.runners.native.checkpoint_image import available_formats, open_image
from glass_core.runners.native.extension import load_extension, requested_isa, why_missing
from glass_core.runners.native.ffn_costs import FfnCosts, costs_key, read_costs
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.processor import num_cores
from glass_core.runners.native.runner import NativeRunner

_KV_BYTES = 64 << 20  # a runner needs some; nothing is decoded


def known_costs() -> Iterator[tuple[str, FfnCosts | None]]:
    """(model and format, what a server with default threads and instruction set would use), None = not measured yet."""
    if why_missing() is not None:
        return
    isa = requested_isa() or load_extension().kernels.choose_isa("")
    for name, header in _images():
        yield name, read_costs(header.path, costs_key(header, isa=isa, num_threads=num_cores()))


def measure_all() -> None:
    """Measure every pulled image again, as its first start would. Raises ConfigurationError without the extension."""
    load_extension()
    for _, header in _images():
        runner = NativeRunner(header, CacheConfig(kv_cache_bytes=_KV_BYTES))
        try:
            runner.measure_ffn_costs()
        finally:
            runner.close()


def describe(costs: FfnCosts | None) -> str:
    """One line: from which density on a layer is computed as a whole, and what a neuron costs both ways."""
    if costs is None:
        return "not measured yet: the first start does, until then the list of kept neurons is walked"
    break_even = ", ".join(f"{cost.num_rows}: {cost.break_even:.2f}" for cost in costs.rows)
    costs_text = ", ".join(f"{cost.num_rows}: {cost.listed_ns:.0f}/{cost.whole_ns:.0f}" for cost in costs.rows)
    return f"break-even density by rows {break_even}; ns a neuron listed/whole {costs_text}"


def _images() -> Iterator[tuple[str, ImageHeader]]:
    """Intact images of intact models; `glass doctor` reports the others elsewhere."""
    for manifest in sorted(models_directory().glob(f"*/{PREPARED_MANIFEST}")):
        try:
            checkpoint = open_prepared(manifest.parent)
            headers = [open_image(checkpoint, name) for name in available_formats(manifest.parent)]
        except GlassError:
            continue
        for header in headers:
            yield f"{manifest.parent.name} {header.format}", header
