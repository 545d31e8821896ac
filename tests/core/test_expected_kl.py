"""ExpectedKl: interpolation, and the largest sparsity under a bound."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glass_core.errors import ArtifactError, ConfigurationError
from glass_core.expected_kl import REFINED, ExpectedKl
from glass_core.sparsity.artifact import read_artifact, write_artifact
from glass_core.sparsity.budget import uniform_profile
from glass_core.sparsity.expected_kl_json import tables_from_json
from tests.core.sparsity_samples import NUM_LAYERS, make_statistics, property_test

TABLE = ExpectedKl((0.1, 0.3, 0.6), (0.01, 0.05, 0.2), (0.0, 0.04, 0.1), (0.02, 0.06, 0.3))


@st.composite
def tables(draw: st.DrawFn) -> ExpectedKl:
    steps = sorted(draw(st.sets(st.integers(1, 95), min_size=1, max_size=8)))
    values = sorted(draw(st.lists(st.floats(0, 5), min_size=len(steps), max_size=len(steps))))
    return ExpectedKl(tuple(step / 100 for step in steps), tuple(values), tuple(values), tuple(values))


@property_test
@given(tables(), st.floats(1e-9, 10))
def test_the_choice_is_the_largest_whole_percent_under_the_bound(table: ExpectedKl, max_kl: float) -> None:
    chosen = table.largest_sparsity(max_kl)
    percents = range(round(table.max_sparsity * 100) + 1)
    allowed = [percent for percent in percents if (value := table.at(percent / 100)) is not None and value <= max_kl]
    assert chosen == max(allowed) / 100


@property_test
@given(tables(), st.floats(1e-9, 10), st.floats(1e-9, 10))
def test_a_looser_bound_never_gives_less(table: ExpectedKl, one: float, other: float) -> None:
    assert table.largest_sparsity(min(one, other)) <= table.largest_sparsity(max(one, other))


@property_test
@given(tables(), st.floats(0, 1), st.floats(0, 1))
def test_interpolation_never_falls_and_meets_the_points(table: ExpectedKl, one: float, other: float) -> None:
    low, high = (table.at(share * table.max_sparsity) for share in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high * (1 + 1e-12)
    assert [table.at(point) for point in table.sparsities] == list(table.kl)


def test_between_the_points_it_is_linear() -> None:
    assert TABLE.at(0.0) == 0.0
    assert TABLE.at(0.05) == pytest.approx(0.005)
    assert TABLE.at(0.2) == pytest.approx(0.03)
    assert TABLE.at(0.61) is None
    assert TABLE.largest_sparsity(0.0301) == 0.2
    assert TABLE.largest_sparsity(0.0009) == 0.0
    assert TABLE.largest_sparsity(0.00101) == 0.01
    assert TABLE.largest_sparsity(9.0) == 0.6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kl": (0.1, 0.2)}, "one entry per point"),
        ({"sparsities": (), "kl": (), "low": (), "high": ()}, "one entry per point"),
        ({"sparsities": (0.1, 0.1, 0.6)}, "ascend within"),
        ({"sparsities": (0.1, 0.3, 1.0)}, "ascend within"),
        ({"kl": (0.2, 0.1, 0.3)}, "kl must be finite, not negative, not falling"),
        ({"low": (-0.1, 0.1, 0.3)}, "low must be"),
        ({"high": (0.1, 0.2, math.inf)}, "high must be"),
        ({"kl": (math.nan, 0.2, 0.3)}, "kl must be"),
    ],
)
def test_impossible_tables_are_refused(changes: dict[str, Any], reason: str) -> None:
    parts = {name: getattr(TABLE, name) for name in ("sparsities", "kl", "low", "high")}
    with pytest.raises(ConfigurationError, match=reason):
        ExpectedKl(**(parts | changes))


def test_the_artifact_keeps_tables(tmp_path: Path) -> None:
    profiles = {"uniform": uniform_profile(NUM_LAYERS)}
    path = tmp_path / "tiny.safetensors"
    write_artifact(path, make_statistics(profiles=profiles, expected_kl={"uniform": {"a_glass": TABLE}}))
    assert read_artifact(path).expected_kl == {"uniform": {"a_glass": TABLE}}
    write_artifact(path, make_statistics(profiles=profiles))
    assert read_artifact(path).expected_kl == {}


@pytest.mark.parametrize("tables", [{"tuned": {"a_glass": TABLE}}, {"uniform": {REFINED: TABLE}}])
def test_tables_of_what_the_artifact_does_not_have_are_refused(tables: Any) -> None:
    with pytest.raises(ArtifactError, match="there is no such profile"):
        make_statistics(profiles={"uniform": uniform_profile(NUM_LAYERS)}, expected_kl=tables)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "object of objects"),
        ({"uniform": []}, "object of objects"),
        ({"uniform": {"a_glass": {"kl": [0.1]}}}, "'uniform', 'a_glass': expected an object of high, kl, low"),
        ({"uniform": {"a_glass": {"sparsities": ["x"], "kl": [0], "low": [0], "high": [0]}}}, "a list of numbers"),
        ({"uniform": {"a_glass": {"sparsities": [2], "kl": [0], "low": [0], "high": [0]}}}, "ascend within"),
        ({"uniform": {"a_glass": {"sparsities": [10**400], "kl": [0], "low": [0], "high": [0]}}}, "too large"),
    ],
)
def test_hostile_json_is_refused(raw: Any, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        tables_from_json(raw)
