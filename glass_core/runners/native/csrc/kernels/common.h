// Small helpers for the kernel files. Everything here is `static` (internal linkage) on purpose: each ISA's file is
// compiled with its own flags, and a shared inline function could be linked in the wrong ISA's version.
// For the same reason the kernel files use no standard library templates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace glass {

// A per-thread block of at least `bytes` bytes, aligned to 64, valid until the thread's next call.
void* kernel_scratch(size_t bytes);

[[maybe_unused]] static inline float bf16_to_float(uint16_t bits) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

// IEEE 754 binary16 to binary32, exact, subnormals included.
[[maybe_unused]] static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return __builtin_bit_cast(float, sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    // rebias by a multiplication, which also normalizes subnormals: 2^(127 - 15)
    const float value = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | sign);
}

[[maybe_unused]] static inline uint16_t load_u16(const uint8_t* bytes) {
    uint16_t value;
    __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}

[[maybe_unused]] static inline const uint8_t* row_at(const RowsView& rows, const int32_t* index, int32_t first,
                                                     int32_t i) {
    return rows.base + static_cast<size_t>(index ? index[i] : first + i) * rows.stride;
}

// Round to nearest even for |x| < 2^22, as the SIMD conversions do.
[[maybe_unused]] static inline int32_t round_even(float x) {
    return static_cast<int32_t>((x + 12582912.0f) - 12582912.0f);
}

// Groups (activations: 32 values, down: 32 neurons) below this magnitude are taken as 0: steps/max would overflow.
inline constexpr float kTiniest = 1e-36f;

// z of one (row, group of 32 neurons) as integers: value = scale * code. Unused places are 0.
struct DownCodes {
    float scale;
    int32_t sum;  // of the codes
    int16_t codes[kGroup];
};

[[maybe_unused]] static inline void quantize_down(const float* z, int32_t n, int32_t steps, DownCodes& out) {
    float largest = 0.0f;
    for (int32_t i = 0; i < n; ++i) {
        const float magnitude = __builtin_fabsf(z[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    const bool none = largest < kTiniest;
    const float inverse = none ? 0.0f : static_cast<float>(steps) / largest;
    out.scale = none ? 0.0f : largest / static_cast<float>(steps);
    out.sum = 0;
    for (int32_t i = 0; i < kGroup; ++i) {
        const int32_t code = i < n ? round_even(z[i] * inverse) : 0;
        out.codes[i] = static_cast<int16_t>(code);
        out.sum += code;
    }
}

// How many of index[0, n) lie in the same group of 32 neurons as index[0]; index ascends.
[[maybe_unused]] static inline int32_t same_group(const int32_t* index, int32_t n) {
    const int32_t group = index[0] / kGroup;
    int32_t count = 1;
    while (count < n && index[count] / kGroup == group) ++count;
    return count;
}

}  // namespace glass
