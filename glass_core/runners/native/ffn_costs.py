"""What a neuron of the FFN costs on this machine: measured at the first start with an image, kept beside the image.

A step walks, layer by layer, either the list of the neurons that some row keeps or all neurons with the others masked
(csrc/ffn_choice.h). The list does less work, the whole is faster per neuron; by how much depends on the rows that share
it, the processor and the instruction set. Both give every row the same bits, so what is measured may differ from start
to start without a result depending on it.

The file `native-<format>-v<version>.costs.json` has one entry per processor, instruction set, number of threads, image
and build of the library. An entry that is missing or damaged is measured again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from glass_core import __version__
from glass_core.runners.native.extension import build_identity
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.processor import cpu_model
from glass_core.runners.native.types import NativeModel

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
SECONDS_PER_ROW_COUNT = 0.02
# of the list that is timed: near the densities at which the two ways meet
PROBE_DENSITY = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FfnCost:
    """Nanoseconds per neuron and layer, all threads together, in a step of `num_rows` tokens."""

    num_rows: int
    listed_ns: float
    whole_ns: float

    @property
    def break_even(self) -> float:
        """Unions of more than this share of a layer's neurons are faster computed as a whole."""
        return min(1.0, self.whole_ns / self.listed_ns)


@dataclass(frozen=True, slots=True)
class FfnCosts:
    """One cost per entry of ROW_COUNTS, in that order."""

    rows: tuple[FfnCost, ...]

    def break_even_points(self) -> list[tuple[int, float]]:
        """As `NativeModel.set_ffn_break_even` takes them."""
        return [(cost.num_rows, cost.break_even) for cost in self.rows]


def choose_paths_by_cost(model: NativeModel, header: ImageHeader) -> None:
    """Let the model's steps choose by the costs known for it here; they are measured first where there are none."""
    costs = read_costs(header.path, costs_key(header, isa=model.isa, num_threads=model.num_threads))
    if costs is None:
        measure_paths(model, header)
    else:
        model.set_ffn_break_even(costs.break_even_points())


def measure_paths(model: NativeModel, header: ImageHeader) -> None:
    """Measure, keep the result for later starts, and let the model's steps choose by it."""
    costs = measure_costs(model)
    write_costs(header.path, costs_key(header, isa=model.isa, num_threads=model.num_threads), costs)
    model.set_ffn_break_even(costs.break_even_points())


def measure_costs(model: NativeModel) -> FfnCosts:
    """Time both ways for every number of rows: about SECONDS_PER_ROW_COUNT each, more where two passes take longer."""
    rows = []
    for num_rows in ROW_COUNTS:
        listed, whole = model.time_ffn(num_rows, PROBE_DENSITY, SECONDS_PER_ROW_COUNT)
        rows.append(FfnCost(num_rows, listed, whole))
    return FfnCosts(tuple(rows))


def costs_key(header: ImageHeader, *, isa: str, num_threads: int) -> str:
    """What the costs depend on, hashed."""
    spec = header.spec
    parts = {
        "cpu": cpu_model(),
        "isa": isa,
        "num_threads": num_threads,
        "fingerprint": header.fingerprint,
        "format": header.format,
        "shape": (spec.num_layers, spec.hidden_size, spec.intermediate_size),
        "library": (__version__, build_identity()),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def costs_path(image: Path) -> Path:
    """Where the costs of an image are kept."""
    return image.with_suffix(".costs.json")


def read_costs(image: Path, key: str) -> FfnCosts | None:
    """The costs kept under `key`; None when there are none, or none that can be used, which is logged."""
    entry = _read_entries(costs_path(image)).get(key)
    if entry is None:
        return None
    try:
        return _parse(entry)
    except (TypeError, ValueError, KeyError) as error:
        logger.warning("%s: an entry is damaged and measured again (%s)", costs_path(image), error)
        return None


def write_costs(image: Path, key: str, costs: FfnCosts) -> None:
    """Keep the costs for later starts. A folder that cannot be written is logged: every start then measures."""
    path = costs_path(image)
    entries = {**_read_entries(path), key: [asdict(cost) for cost in costs.rows]}
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        logger.warning("FFN costs are measured at every start: %s cannot be written (%s)", path, error.strerror)


def _read_entries(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s: cannot be read, its costs are measured again (%s)", path, error)
        return {}
    if not isinstance(entries, dict):
        logger.warning("%s: not a JSON object, its costs are measured again", path)
        return {}
    return entries


def _parse(entry: Iterable[dict[str, Any]]) -> FfnCosts:
    """Raises TypeError, KeyError or ValueError for anything but what `write_costs` wrote."""
    rows = tuple(FfnCost(row["num_rows"], float(row["listed_ns"]), float(row["whole_ns"])) for row in entry)
    if tuple(cost.num_rows for cost in rows) != ROW_COUNTS:
        raise ValueError(f"expected costs of {ROW_COUNTS} rows")
    if not all(isfinite(value) and value > 0 for cost in rows for value in (cost.listed_ns, cost.whole_ns)):
        raise ValueError("expected finite costs above 0")
    return FfnCosts(rows)
