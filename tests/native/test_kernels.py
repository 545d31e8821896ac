"""Every instruction set's kernels against numpy in float64 and against the portable kernels."""

from types import ModuleType
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.kernel_arrays import (
    CODED_DOWN_STEPS,
    DOWN_STEPS,
    GROUP,
    Doubles,
    Floats,
    Packed,
    pad_columns,
    padded,
    random_activations,
    random_down,
    random_rows,
)

native = pytest.importorskip("glass_core.runners.native._native", reason="the native extension is not built")
kernels = cast(ModuleType, native.kernels)
ISAS: list[str] = kernels.available_isas()
FORMATS = ["q4", "q8", "bf16"]
# float32 rounding of a sum, relative to the sum of magnitudes
TOLERANCE = 2e-6

each_isa = pytest.mark.parametrize("isa", ISAS)
each_format = pytest.mark.parametrize("weight_format", FORMATS)
each_down_format = pytest.mark.parametrize("weight_format", [*FORMATS, "q4 coded"])
seeds = st.integers(0, 2**32 - 1)
fuzz = settings(max_examples=25, deadline=None)


class Activations(NamedTuple):
    values: Floats
    codes: npt.NDArray[np.int8]
    scales: Floats
    sums: Floats

    def rows(self, start: int, stop: int) -> "Activations":
        part = slice(start, stop)
        return Activations(self.values[part], self.codes[part], self.scales[part], self.sums[part])


def quantize(isa: str, x: Floats) -> Activations:
    codes, scales, sums = kernels.quantize(isa, x, padded(x.shape[1]))
    return Activations(pad_columns(x), codes, scales, sums)


def dot_rows(isa: str, rows: Packed, x: Activations, index: npt.NDArray[np.int32] | None = None) -> Floats:
    n = len(rows.packed) if index is None else len(index)
    return cast(Floats, kernels.dot_rows(isa, rows.format, rows.packed, index, 0, n, *x))


def accumulate_down(isa: str, down: Packed, index: npt.NDArray[np.int32], z: Floats, y: Floats) -> Floats:
    return cast(Floats, kernels.accumulate_down(isa, down.format, down.packed, down.scales, down.units, index, z, y))


def used_values(x: Activations, weight_format: str) -> Doubles:
    """What the kernel multiplies with: the codes times their scales, or the float values."""
    if weight_format == "bf16":
        return x.values.astype(np.float64)
    scales = np.repeat(x.scales.astype(np.float64), GROUP, axis=1)
    return x.codes.astype(np.float64) * scales


def used_z(z: Floats, down: Packed, index: npt.NDArray[np.int32]) -> Doubles:
    """z rounded as the contract says: per row and group of 32 neurons, so many steps of the largest magnitude."""
    result = z.astype(np.float64)
    if down.format == "bf16":
        return result
    steps = np.float32(DOWN_STEPS if down.units is None else CODED_DOWN_STEPS)
    for group in np.unique(index // GROUP):
        at = np.flatnonzero(index // GROUP == group)
        largest = np.abs(z[:, at]).max(axis=1, keepdims=True)
        scale = np.where(largest < 1e-36, 0, largest / steps)
        inverse = steps / np.where(largest < 1e-36, np.float32(np.inf), largest)
        result[:, at] = np.rint(z[:, at] * inverse).astype(np.float64) * scale
    return result


def assert_close(actual: Floats, x: Doubles, weights: Doubles, magnitudes: Doubles, start: Doubles | float = 0) -> None:
    """actual = start + x @ weights up to float32 rounding of its terms."""
    bound = TOLERANCE * (np.abs(start) + np.abs(x) @ magnitudes) + 1e-37
    assert np.all(np.abs(actual - (start + x @ weights)) <= bound)


def subset(rng: np.random.Generator, total: int, size: int) -> npt.NDArray[np.int32]:
    return np.sort(rng.choice(total, size, replace=False)).astype(np.int32)


def test_portable_is_always_there_and_last() -> None:
    assert ISAS[-1] == "portable"
    assert len(set(ISAS)) == len(ISAS)


def test_an_unknown_isa_is_refused() -> None:
    with pytest.raises(ValueError, match="no kernels for ISA 'z80'"):
        kernels.quantize("z80", np.zeros((1, 64), np.float32), 64)


@each_isa
@fuzz
@given(seed=seeds, cols=st.integers(1, 200), exponent=st.integers(-45, 36))
def test_quantize_is_the_nearest_code_of_the_group(isa: str, seed: int, cols: int, exponent: int) -> None:
    x = random_activations(np.random.default_rng(seed), 3, cols, 10.0**exponent)
    result = quantize(isa, x)
    groups = result.values.reshape(3, -1, GROUP)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    none = largest < np.float32(1e-36)
    inverse = np.where(none, np.float32(0), np.float32(127) / np.where(none, np.float32(1), largest))
    codes = np.rint(groups * inverse).astype(np.int8)
    np.testing.assert_array_equal(result.codes, codes.reshape(3, -1))
    scales = np.where(none, np.float32(0), largest / np.float32(127))[..., 0]
    np.testing.assert_array_equal(result.scales, scales)
    np.testing.assert_array_equal(result.sums, scales * codes.sum(axis=2, dtype=np.int32).astype(np.float32))


@each_isa
@each_format
@fuzz
@given(seed=seeds, cols=st.integers(1, 1100), n=st.integers(1, 70), num_rows=st.integers(1, 13))
def test_dot_rows_equals_float64(isa: str, weight_format: str, seed: int, cols: int, n: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, n, cols, weight_format)
    x = quantize(isa, random_activations(rng, num_rows, cols))
    assert_close(dot_rows(isa, rows, x), used_values(x, weight_format), rows.weights.T, rows.magnitudes.T)


@each_isa
@each_format
@fuzz
@given(seed=seeds, total=st.integers(1, 60), data=st.data())
def test_dot_rows_of_an_index_and_of_a_range(
    isa: str, weight_format: str, seed: int, total: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, total, 100, weight_format)
    x = quantize(isa, random_activations(rng, data.draw(st.integers(1, 6)), 100))
    whole = dot_rows(isa, rows, x)
    index = subset(rng, total, data.draw(st.integers(1, total)))
    np.testing.assert_array_equal(dot_rows(isa, rows, x, index), whole[:, index])
    first = data.draw(st.integers(0, total - 1))
    part = kernels.dot_rows(isa, weight_format, rows.packed, None, first, total - first, *x)
    np.testing.assert_array_equal(part, whole[:, first:])


@each_isa
@each_format
@fuzz
@given(seed=seeds, cols=st.integers(1, 1100), num_rows=st.integers(1, 40))
def test_a_row_has_the_same_dots_alone(isa: str, weight_format: str, seed: int, cols: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 21, cols, weight_format)
    x = quantize(isa, random_activations(rng, num_rows, cols))
    together = dot_rows(isa, rows, x)
    for t in range(num_rows):
        assert dot_rows(isa, rows, x.rows(t, t + 1)).tobytes() == together[t].tobytes()


@each_isa
@each_format
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e30])
def test_dot_rows_with_extreme_activations(isa: str, weight_format: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    rows = random_rows(rng, 33, 160, weight_format)
    x = quantize(isa, random_activations(rng, 5, 160, scale))
    assert_close(dot_rows(isa, rows, x), used_values(x, weight_format), rows.weights.T, rows.magnitudes.T)


@each_isa
@each_format
def test_dot_rows_of_zeros_are_zero(isa: str, weight_format: str) -> None:
    rows = random_rows(np.random.default_rng(6), 40, 300, weight_format)
    for num_rows in (1, 6):
        assert not dot_rows(isa, rows, quantize(isa, np.zeros((num_rows, 300), np.float32))).any()


@each_isa
@each_down_format
@fuzz
@given(seed=seeds, hidden=st.integers(1, 300), neurons=st.integers(1, 150), data=st.data())
def test_accumulate_down_equals_float64(
    isa: str, weight_format: str, seed: int, hidden: int, neurons: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    down = random_down(rng, neurons, hidden, weight_format)
    index = subset(rng, neurons, data.draw(st.integers(1, neurons)))
    num_rows = data.draw(st.integers(1, 9))
    z = random_activations(rng, num_rows, len(index))
    y = rng.normal(size=(num_rows, padded(hidden))).astype(np.float32)
    used = used_z(z, down, index)
    result = accumulate_down(isa, down, index, z, y)
    assert_close(result, used, down.weights[index], down.magnitudes[index], y.astype(np.float64))


@each_isa
@each_down_format
@fuzz
@given(seed=seeds, num_rows=st.integers(1, 40), neurons=st.integers(1, 100))
def test_a_row_has_the_same_down_projection_alone(
    isa: str, weight_format: str, seed: int, num_rows: int, neurons: int
) -> None:
    rng = np.random.default_rng(seed)
    down = random_down(rng, neurons, 130, weight_format)
    index = np.arange(neurons, dtype=np.int32)
    z = random_activations(rng, num_rows, neurons)
    y = rng.normal(size=(num_rows, 192)).astype(np.float32)
    together = accumulate_down(isa, down, index, z, y)
    for t in range(num_rows):
        alone = accumulate_down(
            isa, down, index, np.ascontiguousarray(z[t : t + 1]), np.ascontiguousarray(y[t : t + 1])
        )
        assert alone.tobytes() == together[t].tobytes()


@each_isa
@each_down_format
@fuzz
@given(seed=seeds, keep=st.floats(0, 1))
def test_a_neuron_with_zero_z_contributes_exactly_nothing(isa: str, weight_format: str, seed: int, keep: float) -> None:
    """So a row masked in the union of several plans gets the bits of its own plan."""
    rng = np.random.default_rng(seed)
    down = random_down(rng, 100, 90, weight_format)
    kept = np.flatnonzero(rng.random(100) < keep).astype(np.int32)
    z = random_activations(rng, 3, 100)
    z[:, np.setdiff1d(np.arange(100), kept)] = 0
    y = rng.normal(size=(3, 128)).astype(np.float32)
    masked = accumulate_down(isa, down, np.arange(100, dtype=np.int32), z, y)
    own = accumulate_down(isa, down, kept, np.ascontiguousarray(z[:, kept]), y)
    assert masked.tobytes() == own.tobytes()


@each_isa
@each_down_format
@pytest.mark.parametrize("split", [32, 64])
def test_calls_may_be_split_between_groups(isa: str, weight_format: str, split: int) -> None:
    rng = np.random.default_rng(8)
    down = random_down(rng, 96, 64, weight_format)
    index = np.arange(96, dtype=np.int32)
    z, y = random_activations(rng, 3, 96), np.zeros((3, 64), np.float32)
    first = accumulate_down(isa, down, index[:split], np.ascontiguousarray(z[:, :split]), y)
    both = accumulate_down(isa, down, index[split:], np.ascontiguousarray(z[:, split:]), first)
    assert both.tobytes() == accumulate_down(isa, down, index, z, y).tobytes()


@each_isa
@each_down_format
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e30])
def test_accumulate_down_with_extreme_z(isa: str, weight_format: str, scale: float) -> None:
    rng = np.random.default_rng(9)
    down = random_down(rng, 70, 100, weight_format)
    index = subset(rng, 70, 50)
    z, y = random_activations(rng, 3, 50, scale), np.zeros((3, 128), np.float32)
    used = used_z(z, down, index)
    assert_close(accumulate_down(isa, down, index, z, y), used, down.weights[index], down.magnitudes[index])


@each_isa
@each_format
@fuzz
@given(seed=seeds, cols=st.integers(1, 700), num_rows=st.integers(1, 9))
def test_agrees_with_portable(isa: str, weight_format: str, seed: int, cols: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 37, cols, weight_format)
    activations = random_activations(rng, num_rows, cols)
    x, reference = quantize(isa, activations), quantize("portable", activations)
    for part, expected in zip(x, reference, strict=True):
        np.testing.assert_array_equal(part, expected)
    dots, expected_dots = dot_rows(isa, rows, x), dot_rows("portable", rows, x)
    bound = np.abs(used_values(x, weight_format)) @ rows.magnitudes.T
    assert np.all(np.abs(dots - expected_dots) <= TOLERANCE * bound)
