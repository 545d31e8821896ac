"""The cost model of the FFN: measured once, kept beside the image, measured again when it cannot be used."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glass_core.config import CacheConfig, EngineConfig
from glass_core.runners.native import ffn_costs
from glass_core.runners.native.ffn_costs import (
    ROW_COUNTS,
    FfnCost,
    FfnCosts,
    choose_paths_by_cost,
    costs_key,
    costs_path,
    measure_costs,
    read_costs,
    write_costs,
)
from glass_core.runners.native.image import ImageHeader
from glass_core.runners.native.runner import load
from tests.native.harness import NativeHarness, make_header
from tests.parity.variants import Variant

pytest.importorskip("glass_core.runners.native._native")
VARIANT = Variant("llama", "llama", {"hidden_size": 64, "intermediate_size": 200})
COSTS = FfnCosts(tuple(FfnCost(num_rows, 50.0 + num_rows, 40.0) for num_rows in ROW_COUNTS))


@pytest.fixture
def header(tmp_path: Path) -> ImageHeader:
    return make_header(VARIANT, tmp_path, "int4")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[FfnCosts]:
    """Every measurement gives COSTS and is recorded."""
    calls: list[FfnCosts] = []

    def measure(model: object) -> FfnCosts:
        calls.append(COSTS)
        return COSTS

    monkeypatch.setattr(ffn_costs, "measure_costs", measure)
    return calls


class RecordingModel:
    """What choose_paths_by_cost needs of a model."""

    isa = "portable"
    num_threads = 2

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def set_ffn_break_even(self, points: list[tuple[int, float]]) -> None:
        self.points = points


def start(header: ImageHeader) -> RecordingModel:
    model: Any = RecordingModel()
    choose_paths_by_cost(model, header)
    recorded: RecordingModel = model
    return recorded


def test_the_first_start_measures_and_the_next_one_reads(header: ImageHeader, measured: list[FfnCosts]) -> None:
    assert start(header).points == start(header).points == COSTS.break_even_points()
    assert len(measured) == 1


def test_a_break_even_is_the_ratio_of_the_costs_and_at_most_one() -> None:
    assert FfnCost(1, 50.0, 40.0).break_even == pytest.approx(0.8)
    assert FfnCost(1, 30.0, 40.0).break_even == 1.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda entries, key: "not json",
        lambda entries, key: "[]",
        lambda entries, key: json.dumps({key: 3}),
        lambda entries, key: json.dumps({key: entries[key][:-1]}),
        lambda entries, key: json.dumps({key: [{**row, "whole_ns": -1} for row in entries[key]]}),
        lambda entries, key: json.dumps({key: [{**row, "listed_ns": float("nan")} for row in entries[key]]}),
        lambda entries, key: json.dumps({key: [{"num_rows": 1}]}),
    ],
)
def test_damaged_costs_are_logged_and_measured_again(
    header: ImageHeader,
    measured: list[FfnCosts],
    damage: Callable[[dict[str, Any], str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    start(header)
    path = costs_path(header.path)
    key = costs_key(header, isa="portable", num_threads=2)
    path.write_text(damage(json.loads(path.read_bytes()), key), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert start(header).points == COSTS.break_even_points()
    assert len(measured) == 2
    assert str(path) in caplog.text
    assert read_costs(header.path, key) == COSTS


def test_costs_of_other_conditions_do_not_count_and_survive(header: ImageHeader) -> None:
    key = costs_key(header, isa="portable", num_threads=2)
    others = (
        costs_key(header, isa="avx2", num_threads=2),
        costs_key(header, isa="portable", num_threads=1),
        costs_key(replace(header, fingerprint="other"), isa="portable", num_threads=2),
    )
    assert len({key, *others}) == 4
    write_costs(header.path, key, COSTS)
    assert [read_costs(header.path, other) for other in others] == [None, None, None]
    write_costs(header.path, others[0], COSTS)
    assert read_costs(header.path, key) == COSTS


def test_a_folder_that_cannot_be_written_is_said_and_survived(
    header: ImageHeader, measured: list[FfnCosts], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Path, text: str, encoding: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert start(header).points == COSTS.break_even_points()
    assert "measured at every start" in caplog.text


def test_measuring_gives_costs_for_every_number_of_rows(header: ImageHeader) -> None:
    native = NativeHarness(header)
    costs = measure_costs(native.runner._open())
    assert tuple(cost.num_rows for cost in costs.rows) == ROW_COUNTS
    assert all(cost.listed_ns > 0 and cost.whole_ns > 0 for cost in costs.rows)


@pytest.mark.parametrize("arguments", [(0, 0.5, 0.0), (65, 0.5, 0.0), (1, 0.0, 0.0), (1, 1.5, 0.0)])
def test_what_cannot_be_timed_is_refused(header: ImageHeader, arguments: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="time_ffn"):
        NativeHarness(header).runner._open().time_ffn(*arguments)


def test_loading_a_runner_leaves_its_costs_beside_the_image(header: ImageHeader) -> None:
    config = EngineConfig(
        header.path.parent, "tiny", dtype="int4", num_threads=1, cache=CacheConfig(kv_cache_bytes=1 << 20)
    )
    runner = load(config)
    assert read_costs(header.path, costs_key(header, isa=runner.isa, num_threads=1)) is not None
    runner.close()
