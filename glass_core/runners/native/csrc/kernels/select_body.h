// Choosing neurons by their scores, one bit per position, in plain C++: for the instruction sets whose vectors cannot
// move marked values together.
#pragma once

#include "common.h"

namespace glass {
namespace {

void drop_below(const float* values, const float* weights, const int32_t* index, float threshold, int32_t n,
                uint32_t* bits) {
    for (int32_t start = 0; start < n; start += 32) {
        const int32_t count = n - start < 32 ? n - start : 32;
        uint32_t below = 0;
        for (int32_t i = 0; i < count; ++i) {
            const float score = __builtin_fabsf(values[start + i]) * weights[index[start + i]];
            below |= static_cast<uint32_t>(score < threshold) << i;
        }
        bits[start / 32] &= ~below;
    }
}

void clear_unmarked(const uint32_t* bits, int32_t n, float* values) {
    for (int32_t i = 0; i < n; ++i) {
        const uint32_t kept = 0u - ((bits[i / 32] >> (i % 32)) & 1u);
        values[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, values[i]) & kept);
    }
}

int32_t gather_marked(const uint32_t* bits, int32_t n, const void* from, void* to) {
    const auto* source = static_cast<const uint8_t*>(from);
    auto* target = static_cast<uint8_t*>(to);
    int32_t count = 0;
    for (int32_t i = 0; i < n; ++i) {
        __builtin_memmove(target + 4 * count, source + 4 * i, 4);
        count += static_cast<int32_t>((bits[i / 32] >> (i % 32)) & 1u);
    }
    return count;
}

}  // namespace
}  // namespace glass
