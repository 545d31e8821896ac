"""Quantized blocks survive packing; the bytes lie where the layout says; exact grids are recovered from floats."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_core.errors import CheckpointError
from glass_core.runners.native.packing import (
    Blocks,
    Floats,
    Kind,
    code_column_scales,
    decode_column_scales,
    pack_column_scales,
    pack_columns,
    pack_rows,
    row_bytes,
    stack,
    unpack_columns,
    unpack_rows,
)
from glass_core.runners.native.quantize import exact, nearest

KINDS: tuple[Kind, ...] = ("q4", "q8", "bf16")
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 150))


def random_blocks(kind: Kind, shape: tuple[int, int], seed: int) -> Blocks:
    generator = np.random.default_rng(seed)
    if kind == "bf16":
        bits = generator.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16
        return Blocks(kind, bits.astype(np.uint16))
    scales = generator.standard_normal((2, shape[0], -(-shape[1] // 32))).astype(np.float16)
    codes = generator.integers(0, 16 if kind == "q4" else 256, shape).astype(np.uint8)
    return Blocks(kind, codes, scales[0], scales[1] if kind == "q4" else None)


def assert_same(first: Blocks, second: Blocks) -> None:
    assert first.kind == second.kind
    for ours, theirs in zip(
        (first.codes, first.scale, first.minimum), (second.codes, second.scale, second.minimum), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_rows_survive_packing(kind: Kind, shape: tuple[int, int], seed: int) -> None:
    blocks = random_blocks(kind, shape, seed)
    packed = pack_rows(blocks)
    assert packed.shape == (shape[0], row_bytes(kind, shape[1]))
    assert_same(unpack_rows(packed, kind, shape[1]), blocks)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_columns_survive_packing(kind: Kind, shape: tuple[int, int], seed: int) -> None:
    blocks = random_blocks(kind, shape, seed)
    columns, scales = pack_columns(blocks), None if kind == "bf16" else pack_column_scales(blocks)
    assert columns.shape[0] == shape[1]
    assert columns.shape[1] % 8 == 0
    assert_same(unpack_columns(columns, scales, kind, shape[0]), blocks)


def test_q4_row_bytes() -> None:
    codes = (np.arange(40, dtype=np.uint8) % 16)[None]
    blocks = Blocks("q4", codes, np.array([[1, 2]], np.float16), np.array([[3, 4]], np.float16))
    (row,) = pack_rows(blocks)
    assert len(row) == 32 + 8
    assert [row[0] & 15, row[0] >> 4] == [codes[0, 0], codes[0, 32]]
    assert [row[8] & 15, row[8] >> 4] == [codes[0, 8], 0]  # value 40 is padding
    assert row[32:].view(np.float16).tolist() == [1, 3, 2, 4]


def test_q8_row_bytes() -> None:
    blocks = Blocks("q8", np.full((1, 70), 200, np.uint8), np.array([[1, 2, 3]], np.float16))
    (row,) = pack_rows(blocks)
    assert len(row) == 128 + 8
    assert row[:128].tolist() == [200] * 70 + [0] * 58
    assert row[128:].view(np.float16).tolist() == [1, 2, 3, 0]
    assert blocks.decode()[0, [0, 40, 69]].tolist() == [72, 144, 216]


def test_down_codes_are_neuron_major_and_scales_follow_the_outputs() -> None:
    down = random_blocks("q4", (5, 33), 1)
    columns, scales = pack_columns(down), pack_column_scales(down)
    assert [value & 15 for value in columns[32, :5]] == down.codes[:, 32].tolist()
    planes = scales.view(np.float16).reshape(2, 2, 64)  # neurons' group, scale or minimum, output
    assert down.scale is not None
    assert down.minimum is not None
    np.testing.assert_array_equal(planes[1, 0, :5], down.scale[:, 1])
    np.testing.assert_array_equal(planes[0, 1, :5], down.minimum[:, 0])
    assert not planes[:, :, 5:].any()


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), scale=st.sampled_from([1e-6, 1e-3, 1.0, 200.0]))
def test_coded_scales_are_near(shape: tuple[int, int], seed: int, scale: float) -> None:
    blocks = random_blocks("q4", shape, seed)
    assert blocks.scale is not None
    blocks = replace(blocks, scale=(blocks.scale * scale).astype(np.float16))
    exact = pack_column_scales(blocks).view(np.float16).astype(np.float32)
    codes, units = code_column_scales(blocks)
    assert codes.shape == exact.shape
    assert units.shape == (1, 2 * exact.shape[1])
    errors = np.abs(decode_column_scales(codes, units) - exact)
    # half a unit, which is a 127th of the largest, or float16's smallest number
    assert (errors <= np.maximum(np.abs(exact).max(axis=0) / 253, 2.0**-25)).all()


def test_coded_scales_of_zeros_are_zero() -> None:
    blocks = Blocks("q4", np.zeros((3, 40), np.uint8), np.zeros((3, 2), np.float16), np.zeros((3, 2), np.float16))
    codes, units = code_column_scales(blocks)
    assert not codes.any()
    assert not units.any()


def test_stack_refuses_mixed_kinds() -> None:
    with pytest.raises(ValueError, match="cannot stack"):
        stack([random_blocks("q4", (2, 32), 0), random_blocks("q8", (2, 32), 0)])


def spread_blocks(kind: Kind, shape: tuple[int, int], seed: int) -> Blocks:
    """Random blocks as a quantizer leaves them: positive steps, codes that reach the ends in every group."""
    blocks = random_blocks(kind, shape, seed)
    if blocks.scale is None:
        return blocks
    low, high = (0, 15) if kind == "q4" else (1, 255)
    codes = np.maximum(blocks.codes, low)
    codes[:, 0::32], codes[:, 1::32] = low, high
    return Blocks(kind, codes, np.abs(blocks.scale), blocks.minimum)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 150).filter(lambda cols: cols % 32 != 1)),
    seed=st.integers(0, 999),
)
def test_exact_recovers_what_blocks_decode_to(kind: Kind, shape: tuple[int, int], seed: int) -> None:
    values = spread_blocks(kind, shape, seed).decode()
    found = exact(values, kind)
    assert found is not None
    np.testing.assert_array_equal(found.decode(), values)


def test_exact_recovers_q4_0() -> None:
    """Steps of either sign; the largest magnitude has code 0 and no other code need be used."""
    blocks = random_blocks("q4", (50, 64), 0)
    assert blocks.scale is not None
    codes = np.clip(blocks.codes, 1, 13)
    codes[:, 5::32] = 0
    wanted = Blocks("q4", codes, blocks.scale, blocks.scale * np.float16(-8)).decode()
    found = exact(wanted, "q4")
    assert found is not None
    np.testing.assert_array_equal(found.decode(), wanted)


def test_exact_finds_rare_ends() -> None:
    """A few groups that use neither code 0 nor 15, as other quantizers leave them."""
    blocks = spread_blocks("q4", (64, 64), 3)
    blocks.codes[5] = np.clip(blocks.codes[5], 2, 11)
    eights = spread_blocks("q8", (64, 64), 3)
    eights.codes[9] = np.clip(eights.codes[9], 100, 150)
    for wanted in (blocks, eights):
        found = exact(wanted.decode(), wanted.kind)
        assert found is not None
        np.testing.assert_array_equal(found.decode(), wanted.decode())


@pytest.mark.parametrize("kind", KINDS)
def test_exact_refuses_other_values(kind: Kind) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    assert exact(values, kind) is None
    almost = spread_blocks(kind, (64, 64), 1).decode()
    almost[60, 60] *= np.float32(1.001)
    assert exact(almost, kind) is None
    assert exact(values * np.float32(1e9), "q4") is None


# root mean square of the error of standard normal weights; a uniform 4-bit grid over a group of 32 gives about 0.09
MAX_ERROR: dict[Kind, float] = {"q4": 0.085, "q8": 0.006, "bf16": 0.003}


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_error(kind: Kind) -> None:
    values = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    error = nearest(values, kind).decode() - values
    assert np.sqrt(np.mean(error**2)) < MAX_ERROR[kind]


def test_nearest_q4_beats_the_plain_range() -> None:
    values = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    plain = low + np.rint((values - low) / (high - low) * 15) / 15 * (high - low)
    assert np.mean((nearest(values, "q4").decode() - values) ** 2) < 0.9 * np.mean((plain - values) ** 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.5, -3e-8])
def test_nearest_of_constant_rows(kind: Kind, value: float) -> None:
    values = np.full((3, 40), value, np.float32)
    np.testing.assert_allclose(nearest(values, kind).decode(), values, rtol=0.01, atol=1e-7)


def extreme(value: float) -> Floats:
    values = np.zeros((2, 32), np.float32)
    values[1, 3] = value
    return values


@pytest.mark.parametrize(
    ("kind", "value"), [("q4", 1e30), ("q8", 1e30), ("q4", np.nan), ("q8", np.inf), ("bf16", np.nan)]
)
def test_nearest_refuses_what_it_cannot_hold(kind: Kind, value: float) -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        nearest(extreme(value), kind)
