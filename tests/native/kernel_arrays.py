"""Packed weights and activations for the kernel tests, written from the layout's description alone."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

GROUP = 32
CHUNK = 64
DOWN_STEPS = 16256
CODED_DOWN_STEPS = 127

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Packed:
    """Packed weights and what they stand for: `weights` = values (rows, padded columns) in float64.

    `magnitudes` = |d * code| + |m|, what the rounding errors of a sum over the weights are relative to. `scales` are a
    down projection's, coded where it has `units`.
    """

    format: str
    packed: Bytes
    weights: Doubles
    magnitudes: Doubles
    scales: Bytes = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    units: npt.NDArray[np.uint16] | None = None


def padded(cols: int) -> int:
    return -(-cols // CHUNK) * CHUNK


def pad_columns(x: Floats) -> Floats:
    return np.pad(x, ((0, 0), (0, padded(x.shape[1]) - x.shape[1])))


def pack_codes(codes: Bytes, weight_format: str) -> Bytes:
    """Codes (rows, padded columns) to bytes; nibbles of a 64-value chunk: value i low, value 32 + i high, in byte i."""
    if weight_format == "q8":
        return codes
    chunks = codes.reshape(len(codes), -1, 2, GROUP)
    return (chunks[:, :, 0] | (chunks[:, :, 1] << 4)).reshape(len(codes), -1).astype(np.uint8)


def bf16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """Truncated to bfloat16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def bf16_values(bits: npt.NDArray[np.uint16]) -> Doubles:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def random_codes(rng: np.random.Generator, shape: tuple[int, ...], weight_format: str) -> Bytes:
    top = 15 if weight_format == "q4" else 255
    # the extremes often: they are where a saturating instruction would be wrong
    return np.where(rng.random(shape) < 0.3, rng.choice([0, top], shape), rng.integers(0, top + 1, shape)).astype(
        np.uint8
    )


def centered(codes: Bytes, weight_format: str) -> Doubles:
    return codes.astype(np.float64) - (128 if weight_format == "q8" else 0)


def random_halves(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> npt.NDArray[np.float16]:
    return (rng.normal(size=shape) * scale).astype(np.float16)


def random_rows(rng: np.random.Generator, rows: int, cols: int, weight_format: str, scale: float = 0.02) -> Packed:
    """Rows with their scales behind the codes."""
    width = padded(cols)
    if weight_format == "bf16":
        bits = bf16_bits(pad_columns((rng.normal(size=(rows, cols)) * scale).astype(np.float32)))
        weights = bf16_values(bits)
        return Packed("bf16", bits.view(np.uint8), weights, np.abs(weights))
    codes = random_codes(rng, (rows, width), weight_format)
    groups = width // GROUP
    d = random_halves(rng, (rows, groups), scale)
    m = random_halves(rng, (rows, groups), scale) if weight_format == "q4" else np.zeros_like(d)
    planes = np.stack([d, m], axis=2).reshape(rows, -1) if weight_format == "q4" else d
    packed = np.concatenate([pack_codes(codes, weight_format), planes.view(np.uint8)], axis=1)
    products = centered(codes, weight_format).reshape(rows, groups, GROUP) * d.astype(np.float64)[..., None]
    minimums = m.astype(np.float64)[..., None]
    weights, magnitudes = products + minimums, np.abs(products) + np.abs(minimums)
    return Packed(weight_format, packed, weights.reshape(rows, width), magnitudes.reshape(rows, width))


def random_down(rng: np.random.Generator, neurons: int, hidden: int, weight_format: str, scale: float = 0.02) -> Packed:
    """Columns of a down projection, one per neuron, with the scales of each 32 neurons apart, "q4 coded": coded."""
    width = padded(hidden)
    if weight_format == "bf16":
        return random_rows(rng, neurons, hidden, "bf16", scale)
    weight_format, _, coded = weight_format.partition(" ")
    codes = random_codes(rng, (neurons, width), weight_format)
    num_scales, blocks = width * (2 if weight_format == "q4" else 1), -(-neurons // GROUP)
    planes, units = random_halves(rng, (blocks, num_scales), scale), None
    scales, values = planes.view(np.uint8), planes.astype(np.float64)
    if coded:
        multiples, halves = rng.integers(-128, 128, planes.shape, np.int8), planes[0] / np.float16(64)
        scales, units, values = multiples.view(np.uint8), halves.view(np.uint16), multiples * halves.astype(np.float64)
    block = np.arange(neurons) // GROUP
    products = centered(codes, weight_format) * values[block, :width]
    minimums = values[block, width:] if weight_format == "q4" else np.zeros_like(products)
    magnitudes = np.abs(products) + np.abs(minimums)
    packed = pack_codes(codes, weight_format)
    return Packed(weight_format, packed, products + minimums, magnitudes, scales, units)


def random_activations(rng: np.random.Generator, rows: int, cols: int, scale: float = 1.0) -> Floats:
    """Normal values with outliers and whole groups of zeros."""
    x = rng.normal(size=(rows, cols)) * np.where(rng.random((rows, cols)) < 0.02, 30, 1)
    return (
        np.where(np.repeat(rng.random((rows, -(-cols // GROUP))) < 0.1, GROUP, axis=1)[:, :cols], 0, x) * scale
    ).astype(np.float32)
