"""Points of quality against speed: one per way of running the model, ours or a rival's, and who beats whom."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from glass_core.api import SparsityParams
from glass_core.offline.bench.llama_cpp import LlamaBench
from glass_core.offline.bench.quality import Score
from glass_core.offline.bench.spread import spread


@dataclass(slots=True)
class OwnPoint:
    """The native runner in one weight format under one condition."""

    format: str
    params: SparsityParams
    score: Score
    ffn_reads: float
    speeds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        if self.params.is_dense:
            return f"{self.format} dense"
        method = "refined" if self.params.refine else self.params.method
        return f"{self.format} {method} {self.params.sparsity:g}"

    def row(self) -> dict[str, Any]:
        condition = {
            "method": self.params.method,
            "sparsity": self.params.sparsity,
            "profile": self.params.profile,
            "refine": self.params.refine,
            "ffn_reads": self.ffn_reads,
        }
        return {"side": "ours", "label": self.label, "format": self.format, **condition, **_figures(self)}


@dataclass(slots=True)
class RivalPoint:
    """llama.cpp on one GGUF file."""

    peer: LlamaBench
    score: Score
    speeds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"llama.cpp {self.peer.label}"

    def row(self) -> dict[str, Any]:
        file = {"gguf": self.peer.gguf.name, "file_bytes": self.peer.gguf.stat().st_size}
        return {"side": "llama.cpp", "label": self.label, **file, **_figures(self)}


Point = OwnPoint | RivalPoint


def _figures(point: Point) -> dict[str, Any]:
    speed = spread(point.speeds)
    return {
        **asdict(point.score),
        "tokens_per_second": speed.median,
        "tokens_per_second_min": speed.low,
        "tokens_per_second_max": speed.high,
    }


def compared(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points' rows. Ours also say how they stand: `speedup`, over the fastest rival of equal or worse KL (median of
    the repeats' own ratios; None where no rival is that bad), and `beaten_by`, rivals at least as good and faster."""
    rows = [point.row() for point in points]
    rivals = [(point, row) for point, row in zip(points, rows, strict=True) if isinstance(point, RivalPoint)]
    for point, row in zip(points, rows, strict=True):
        if isinstance(point, OwnPoint):
            row["speedup"] = _speedup(point, [rival for rival, _ in rivals if rival.score.kl >= point.score.kl])
            row["beaten_by"] = [theirs["label"] for _, theirs in rivals if _is_better(theirs, row)]
    return rows


def _speedup(point: OwnPoint, rivals: Sequence[RivalPoint]) -> float | None:
    if not rivals:
        return None
    ratios = [
        spread([mine / theirs for mine, theirs in zip(point.speeds, rival.speeds, strict=True)]).median
        for rival in rivals
    ]
    return min(ratios)


def _is_better(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    return bool(theirs["kl"] <= ours["kl"] and theirs["tokens_per_second"] > ours["tokens_per_second"])
