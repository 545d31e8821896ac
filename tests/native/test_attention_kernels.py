"""Every instruction set's attention over a span of cached keys against numpy in float64."""

from dataclasses import dataclass
from types import ModuleType
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("glass_core.runners.native._native", reason="the native extension is not built")
kernels = cast(ModuleType, native.kernels)
ISAS: list[str] = kernels.available_isas()
LANES, SPAN_KEYS, SCALE_DIMS = 16, 128, 32

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

each_isa = pytest.mark.parametrize("isa", ISAS)
each_format = pytest.mark.parametrize("kv_format", ["bf16", "int8"])
seeds = st.integers(0, 2**32 - 1)
fuzz = settings(max_examples=25, deadline=None)


@dataclass(frozen=True)
class Span:
    """Cached keys and values as the kernels read them, and what they stand for: (num_keys, head_dim) in float64.

    Whatever lies behind the last key is not a number.
    """

    format: str
    keys: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint8]
    key_scales: Floats
    value_scales: Floats
    key_values: Doubles
    value_values: Doubles

    def attend(self, isa: str, q: Floats, ranges: npt.NDArray[np.int32], num_keys: int) -> tuple[Floats, Floats]:
        arrays = (self.keys, self.values, self.key_scales, self.value_scales)
        out, states = kernels.attend_span(isa, self.format, *arrays, num_keys, q, ranges)
        return out, states


def encode_bf16(values: Floats) -> tuple[npt.NDArray[np.uint16], Doubles]:
    codes = (values.view(np.uint32) >> 16).astype(np.uint16)
    return codes, (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def random_span(rng: np.random.Generator, num_keys: int, head_dim: int, kv_format: str) -> Span:
    """Keys and values of 16-key groups: keys transposed, values padded to whole lanes."""
    groups, num_scales = -(-num_keys // LANES), -(-head_dim // SCALE_DIMS)
    padded = -(-head_dim // LANES) * LANES
    shape, unused = (2, groups * LANES, head_dim), np.arange(groups * LANES) >= num_keys
    scales = np.ones((2, groups * LANES, num_scales), np.float32)
    if kv_format == "bf16":
        codes, meant = encode_bf16(rng.normal(size=shape).astype(np.float32))
        codes[:, unused] = 0x7FC0
    else:
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        scales = rng.uniform(0.002, 0.02, scales.shape).astype(np.float32)
        meant = codes * np.repeat(scales.astype(np.float64), SCALE_DIMS, axis=2)[..., :head_dim]
        scales[:, unused] = np.nan
    keys = codes[0].reshape(groups, LANES, head_dim).transpose(0, 2, 1)
    values = np.pad(codes[1], ((0, 0), (0, padded - head_dim))).reshape(groups, LANES, padded)
    by_lane = np.ascontiguousarray(scales.reshape(2, groups, LANES, num_scales).transpose(0, 1, 3, 2))
    used = meant[:, :num_keys]
    return Span(kv_format, as_bytes(keys), as_bytes(values), by_lane[0], by_lane[1], used[0], used[1])


def as_bytes(codes: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(codes).view(np.uint8)


def random_queries(rng: np.random.Generator, count: int, head_dim: int) -> Floats:
    q = rng.normal(size=(count, head_dim)).astype(np.float32)
    return np.pad(q, ((0, 0), (0, -head_dim % LANES)))


def expected(span: Span, q: Floats, ranges: npt.NDArray[np.int32]) -> tuple[Doubles, Doubles, Doubles]:
    """Mean of the values under the softmax, largest score, and the sum of exp(score - largest), per query."""
    head_dim = span.key_values.shape[1]
    scores = q[:, :head_dim].astype(np.float64) @ span.key_values.T
    at = np.arange(scores.shape[1])
    scores[(at < ranges[:, :1]) | (at > ranges[:, 1:])] = -np.inf
    largest = scores.max(axis=1)
    weights = np.exp(scores - largest[:, None])
    return weights @ span.value_values / weights.sum(axis=1)[:, None], largest, weights.sum(axis=1)


def random_ranges(rng: np.random.Generator, count: int, num_keys: int) -> npt.NDArray[np.int32]:
    """Every query sees a key at least; some reach beyond both ends, as windows and causality make them."""
    inside = rng.integers(0, num_keys, count)
    return np.stack([inside - rng.integers(0, 200, count), inside + rng.integers(0, 200, count)], axis=1).astype(
        np.int32
    )


@each_isa
@each_format
@fuzz
@given(seed=seeds, num_keys=st.integers(1, SPAN_KEYS), head_dim=st.integers(1, 100), num_queries=st.integers(1, 20))
def test_attention_equals_float64(
    isa: str, kv_format: str, seed: int, num_keys: int, head_dim: int, num_queries: int
) -> None:
    rng = np.random.default_rng(seed)
    span, q = random_span(rng, num_keys, head_dim, kv_format), random_queries(rng, num_queries, head_dim)
    ranges = random_ranges(rng, num_queries, num_keys)
    out, states = span.attend(isa, q, ranges, num_keys)
    mean, largest, total = expected(span, q, ranges)
    np.testing.assert_allclose(states[:, 0], largest, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(states[:, 1], total, rtol=1e-4)
    np.testing.assert_allclose(out[:, :head_dim] / states[:, 1:], mean, rtol=1e-4, atol=1e-4)


@each_isa
@each_format
@fuzz
@given(seed=seeds, num_keys=st.integers(1, SPAN_KEYS), num_queries=st.integers(1, 14))
def test_a_query_has_the_same_bits_alone_and_before_later_keys(
    isa: str, kv_format: str, seed: int, num_keys: int, num_queries: int
) -> None:
    """Later keys are there when a whole prompt is read, and are not when its chunk ends here."""
    rng = np.random.default_rng(seed)
    span, q = random_span(rng, num_keys, 80, kv_format), random_queries(rng, num_queries, 80)
    ranges = random_ranges(rng, num_queries, num_keys)
    out, states = span.attend(isa, q, ranges, num_keys)
    for i in range(num_queries):
        seen = min(num_keys, int(ranges[i, 1]) + 1)
        alone, state = span.attend(isa, q[i : i + 1], ranges[i : i + 1], seen)
        np.testing.assert_array_equal(alone[0], out[i])
        np.testing.assert_array_equal(state[0], states[i])


@each_isa
@each_format
@pytest.mark.parametrize("seen", [(-9, -1), (20, 40), (5, 4)], ids=str)
def test_a_query_that_sees_no_key_gets_nothing(isa: str, kv_format: str, seen: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    span, q = random_span(rng, 20, 32, kv_format), random_queries(rng, 2, 32)
    out, states = span.attend(isa, q, np.array([seen, (0, 3)], np.int32), 20)
    assert states[0].tolist() == [-np.inf, 0] and not out[0].any()
    assert np.isfinite(states[1]).all() and out[1].all()


@each_isa
@each_format
def test_scores_far_apart_neither_overflow_nor_vanish(isa: str, kv_format: str) -> None:
    rng = np.random.default_rng(4)
    span, q = random_span(rng, 100, 64, kv_format), 1e4 * random_queries(rng, 5, 64)
    ranges = np.tile(np.array([0, 99], np.int32), (5, 1))
    out, states = span.attend(isa, q, ranges, 100)
    mean, _, _ = expected(span, q, ranges)
    np.testing.assert_allclose(out / states[:, 1:], mean, rtol=1e-2, atol=1e-2)


@each_isa
@each_format
def test_what_is_not_a_number_stays_so(isa: str, kv_format: str) -> None:
    span, q = random_span(np.random.default_rng(5), 30, 32, kv_format), np.full((1, 32), np.nan, np.float32)
    out, _ = span.attend(isa, q, np.array([(0, 29)], np.int32), 30)
    assert np.isnan(out).all()
