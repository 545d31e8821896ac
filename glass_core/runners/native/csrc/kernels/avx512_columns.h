// The columns of a down projection that a call asks for, group by group, and when they are prefetched. A group is walked
// block by block of its outputs, so its columns must be there when it begins. Included by avx512_down.h only.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

// How far ahead in a column its lines are prefetched once more, after the group before has done so, and what of a call's
// first columns is at its start: the second-level cache drops prefetches that it has no place for.
inline constexpr int32_t kLineAheadBytes = 128;
inline constexpr int32_t kFirstColumnBytes = 192;

inline void prefetch_line(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1); }

// One group's neurons: their columns and the group's scales, and the same of the next group, to prefetch.
struct Group512 {
    const uint8_t* columns[kGroup];
    const uint8_t* ahead[kGroup];
    int32_t quads;
    int32_t column_bytes;
    const uint8_t* scales;
    const uint8_t* scales_ahead;
    const uint16_t* units;  // null: scales are float16
    int32_t outputs;        // of one plane of scales
};

// The line of a group's i-th column that lies kLineAheadBytes further than `at`. Behind its end the next group's column
// goes on: the memory there is of a column that nobody may want.
inline const uint8_t* line_ahead(const Group512& group, int32_t i, int32_t at) {
    const int32_t beyond = at + kLineAheadBytes - group.column_bytes;
    return beyond < 0 ? group.columns[i] + at + kLineAheadBytes : group.ahead[i] + beyond / 64 * 64;
}

// Where the scales of a neuron's group start.
inline const uint8_t* group_scales(const DownView& down, int32_t neuron) {
    return down.scales + static_cast<size_t>(neuron / kGroup) * group_scale_bytes(down);
}

// index[0, count) lie in one group; `left` >= count is what remains of index.
inline void gather_group(const DownView& down, const int32_t* index, int32_t count, int32_t left, Group512& group) {
    group.quads = (count + 3) / 4;
    group.column_bytes = down.format == Format::q4 ? down.hidden_padded / 2 : down.hidden_padded;
    for (int32_t i = 0; i < 4 * group.quads; ++i) {
        // the padding of the last quad meets z codes of 0
        const int32_t at = i < count ? i : count - 1;
        const int32_t ahead = at + count < left ? at + count : left - 1;
        group.columns[i] = down.base + index[at] * down.stride;
        group.ahead[i] = down.base + index[ahead] * down.stride;
    }
    group.scales = group_scales(down, index[0]);
    group.scales_ahead = group_scales(down, index[count < left ? count : 0]);
    group.units = down.units;
    group.outputs = down.hidden_padded;
}

// The beginnings of the first group's columns, which no group before it prefetches. index[0, n) is not empty.
inline void prefetch_first(const DownView& down, const int32_t* index, int32_t n) {
    const int32_t count = same_group(index, n);
    for (int32_t at = 0; at < kFirstColumnBytes; at += 64) {
        for (int32_t i = 0; i < count; ++i) prefetch_line(down.base + index[i] * down.stride + at);
    }
}

}  // namespace
}  // namespace glass
