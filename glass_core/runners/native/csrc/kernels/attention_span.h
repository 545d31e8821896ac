// What paged attention hands to the kernels: up to 128 cached keys and values of one head, wherever their blocks lie.
#pragma once

#include <cstdint>

namespace glass {

inline constexpr int32_t kKeyLanes = 16;   // keys that lie side by side, and the multiple that head_dim is padded to
inline constexpr int32_t kSpanKeys = 128;  // keys whose softmax is taken at once
inline constexpr int32_t kSpanGroups = kSpanKeys / kKeyLanes;
inline constexpr int32_t kKvScaleDims = 32;  // int8: dimensions of a key or value that share one scale

enum class KvFormat : uint8_t { bf16, int8 };

// 16 consecutive positions. Dimension d of key j is keys[d * key_stride + j], of value j values[j * value_stride + d].
// int8: times key_scales[d / 32 * scale_stride + j], value_scales likewise.
struct KeyGroup {
    const void* keys;
    const void* values;
    const float* key_scales;
    const float* value_scales;
};

// Positions that a softmax is taken over. Of the groups only the first num_keys keys count; the bytes of the others are
// readable up to whole groups, and what they hold is without effect. value_stride >= padded_dim.
struct KeySpan {
    KvFormat format;
    int32_t head_dim;
    int32_t padded_dim;  // a multiple of 16
    int32_t num_keys;
    int32_t key_stride;
    int32_t value_stride;
    int32_t scale_stride;
    KeyGroup groups[kSpanGroups];
};

// Keys of the span that a query sees: first … last; none where last < first.
struct KeyRange {
    int32_t first;
    int32_t last;
};

// Of the scores a query has seen: the largest (-inf: it has seen none) and the sum of exp(score - largest).
struct SoftmaxState {
    float largest;
    float sum;
};

}  // namespace glass
