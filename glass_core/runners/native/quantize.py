"""Float values to the storage kinds of an image: exactly where the values are already such blocks, else the nearest.

A checkpoint dequantized from Q4_0, Q4_1 or Q8_0 blocks still is those blocks: the values of a group lie on a grid, and
its ends give scale and minimum. What is recovered is decoded and compared, so "exact" is never a guess.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from glass_core.errors import CheckpointError
from glass_core.runners.native.packing import GROUP, Q8_ZERO, Blocks, Floats, Halves, Kind, stack

MAX_Q4, MAX_Q8 = 15, 127
_CHUNK_VALUES = 1 << 21  # how many values are worked on at a time
_PROBE_ROWS = 16
_SHRINKS = (1.0, 0.92, 0.84)  # shares of a group's range to start the search for the nearest q4 from
_REFITS = 2

Codes = npt.NDArray[np.uint8]
# scale, minimum (None for q8), codes, and which groups they decode exactly; all over groups (n, 32)
_Fit = tuple[Halves, Halves, Codes, npt.NDArray[np.bool_]]


def nearest(values: Floats, kind: Kind) -> Blocks:
    """values: (rows, cols). Raises CheckpointError for values that are not finite or too large for float16 scales."""
    return stack([_NEAREST[kind](chunk) for chunk in _chunks(values)])


def exact(values: Floats, kind: Kind) -> Blocks | None:
    """Blocks that decode to exactly these values, or None. A few rows are tried before all."""
    parts = []
    for chunk in (values[:_PROBE_ROWS], *_chunks(values)):
        try:
            blocks = _EXACT[kind](chunk)
        except CheckpointError:  # a scale that float16 cannot hold
            return None
        if blocks is None:
            return None
        parts.append(blocks)
    return stack(parts[1:])


def _chunks(values: Floats) -> Iterator[Floats]:
    rows = max(1, _CHUNK_VALUES // values.shape[1])
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def _groups(values: Floats) -> Floats:
    """(groups, 32); a short last group repeats its last value, which changes neither its ends nor its grid."""
    missing = -values.shape[1] % GROUP
    return np.pad(values, ((0, 0), (0, missing)), mode="edge").reshape(-1, GROUP)


def _blocks(kind: Kind, values: Floats, codes: Codes, scale: Halves, minimum: Halves | None) -> Blocks:
    rows, cols = values.shape
    return Blocks(
        kind,
        np.ascontiguousarray(codes.reshape(rows, -1)[:, :cols]),
        scale.reshape(rows, -1),
        None if minimum is None else minimum.reshape(rows, -1),
    )


def _half(values: Floats) -> Halves:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise CheckpointError("weights that are not finite, or too large to be quantized with float16 scales")
    return halves


def _codes(groups: Floats, scale: Floats, minimum: Floats | float, low: int, high: int) -> Floats:
    """Nearest code of every value; 0 where the scale is 0. scale, minimum: (n, 1)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint((groups - minimum) / scale)
    clipped: Floats = np.where(scale == 0, 0, np.clip(codes, low, high)).astype(np.float32)
    return clipped


def _nearest_bf16(values: Floats) -> Blocks:
    if not np.isfinite(values).all():
        raise CheckpointError("weights that are not finite")
    bits = np.ascontiguousarray(values).view(np.uint32)
    return Blocks("bf16", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def _exact_bf16(values: Floats) -> Blocks | None:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return Blocks("bf16", (bits >> 16).astype(np.uint16)) if not (bits & 0xFFFF).any() else None


def _nearest_q8(values: Floats) -> Blocks:
    groups = _groups(values)
    scale = _half(np.abs(groups).max(axis=1, keepdims=True) / MAX_Q8)
    codes = _codes(groups, scale.astype(np.float32), 0.0, -MAX_Q8, MAX_Q8)
    return _blocks("q8", values, (codes + Q8_ZERO).astype(np.uint8), scale, None)


def _exact_q8(values: Floats) -> Blocks | None:
    """The largest magnitude is 127 steps in blocks made by the usual quantizers; else fewer."""
    groups = _groups(values)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    scale, codes = _half(largest / MAX_Q8), np.empty(groups.shape, np.uint8)
    open_groups = np.arange(len(groups))
    for steps in range(MAX_Q8, 0, -1):
        step = _half(largest[open_groups] / steps)
        found = _codes(groups[open_groups], step.astype(np.float32), 0.0, -Q8_ZERO, MAX_Q8)
        fits = (step.astype(np.float32) * found == groups[open_groups]).all(axis=1)
        scale[open_groups[fits]] = step[fits]
        codes[open_groups[fits]] = (found[fits] + Q8_ZERO).astype(np.uint8)
        open_groups = open_groups[~fits]
        if not len(open_groups) or _hopeless(open_groups, groups):
            break
    return None if len(open_groups) else _blocks("q8", values, codes, scale, None)


def _nearest_q4(values: Floats) -> Blocks:
    """Least squares: from several ranges, assign codes and refit scale and minimum; the best of all per group."""
    groups = _groups(values)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    middle, half_range = (low + high) / 2, (high - low) / 2
    best = _assign(groups, middle - half_range, 2 * half_range / MAX_Q4)
    for shrink in _SHRINKS:
        minimum, scale = middle - shrink * half_range, 2 * shrink * half_range / MAX_Q4
        for _ in range(_REFITS):
            candidate = _assign(groups, minimum, scale)
            best = _better(groups, best, candidate)
            minimum, scale = _refit(groups, candidate[2].astype(np.float32))
    return _blocks("q4", values, best[2], best[0], best[1])


def _assign(groups: Floats, minimum: Floats, scale: Floats) -> _Fit:
    scale16, minimum16 = _half(scale), _half(minimum)
    wide, offset = scale16.astype(np.float32), minimum16.astype(np.float32)
    codes = _codes(groups, wide, offset, 0, MAX_Q4)
    fits = (wide * codes + offset == groups).all(axis=1)
    return scale16, minimum16, codes.astype(np.uint8), fits


def _refit(groups: Floats, codes: Floats) -> tuple[Floats, Floats]:
    """(minimum, scale) of least squared error for given codes, (n, 1) each."""
    code_mean, value_mean = codes.mean(axis=1, keepdims=True), groups.mean(axis=1, keepdims=True)
    centered = codes - code_mean
    spread = np.maximum((centered * centered).sum(axis=1, keepdims=True), np.float32(1e-30))
    scale: Floats = (centered * (groups - value_mean)).sum(axis=1, keepdims=True) / spread
    return value_mean - scale * code_mean, scale


def _better(groups: Floats, first: _Fit, second: _Fit) -> _Fit:
    take = _squared_error(groups, second) < _squared_error(groups, first)
    column = take[:, None]
    scale, minimum = np.where(column, second[0], first[0]), np.where(column, second[1], first[1])
    return scale, minimum, np.where(column, second[2], first[2]), np.where(take, second[3], first[3])


def _squared_error(groups: Floats, fit: _Fit) -> Floats:
    error = fit[0].astype(np.float32) * fit[2] + fit[1].astype(np.float32) - groups
    squared: Floats = (error * error).sum(axis=1)
    return squared


def _exact_q4(values: Floats) -> Blocks | None:
    """Q4_1 puts a group's ends on codes 0 and 15; Q4_0 its largest magnitude on code 0, 8 steps from zero."""
    groups = _groups(values)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    fit = _assign(groups, low, (high - low) / MAX_Q4)
    fit = _fill(fit, groups, _q4_0_ends)
    for first, last in _END_CODES:
        open_groups = np.flatnonzero(~fit[3])
        if not len(open_groups) or _hopeless(open_groups, groups):
            break
        fit = _fill(fit, groups, _ends_on(first, last))
    return _blocks("q4", values, fit[2], fit[0], fit[1]) if fit[3].all() else None


# the rarer pairs of codes a group's smallest and largest value may have
_END_CODES = [(a, b) for a in range(MAX_Q4 + 1) for b in range(MAX_Q4 + 1) if a != b and (a, b) != (0, MAX_Q4)]
_Ends = Callable[[Floats], tuple[Floats, Floats]]


def _q4_0_ends(groups: Floats) -> tuple[Floats, Floats]:
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1, keepdims=True), axis=1)
    return largest, largest / np.float32(-8)


def _ends_on(first: int, last: int) -> _Ends:
    """(minimum, scale) when the smallest value has code `first` and the largest `last`."""

    def ends(groups: Floats) -> tuple[Floats, Floats]:
        low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
        scale = (high - low) / np.float32(last - first)
        return low - scale * np.float32(first), scale

    return ends


def _fill(fit: _Fit, groups: Floats, ends: _Ends) -> _Fit:
    """Try other ends on the groups that do not fit yet."""
    scale, minimum, codes, fits = fit
    rest = np.flatnonzero(~fits)
    if len(rest):
        new_scale, new_minimum, new_codes, new_fits = _assign(groups[rest], *ends(groups[rest]))
        chosen = rest[new_fits]
        scale[chosen], minimum[chosen], codes[chosen] = new_scale[new_fits], new_minimum[new_fits], new_codes[new_fits]
        fits[chosen] = True
    return fit


def _hopeless(open_groups: npt.NDArray[np.intp], groups: Floats) -> bool:
    """Most groups of a block-quantized matrix have the usual ends; where many have not, it is not one."""
    return len(open_groups) > max(8, len(groups) // 4)


_NEAREST: dict[Kind, Callable[[Floats], Blocks]] = {
    "q4": _nearest_q4,
    "q8": _nearest_q8,
    "bf16": _nearest_bf16,
}
_EXACT: dict[Kind, Callable[[Floats], Blocks | None]] = {
    "q4": _exact_q4,
    "q8": _exact_q8,
    "bf16": _exact_bf16,
}
