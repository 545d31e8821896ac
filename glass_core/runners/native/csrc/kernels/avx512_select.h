// Choosing neurons by their scores, one bit per position, 16 at a time. Included by the AVX-512 and AMX kernel files.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

// The half of `bits` that belongs to positions [i, i + 16).
inline __mmask16 marks_at(const uint32_t* bits, int32_t i) {
    return static_cast<__mmask16>(bits[i / 32] >> (i % 32));
}

// weights[index[0 .. 16)]; neighbors need no gather.
inline __m512 listed_weights(const float* weights, const int32_t* index, __mmask16 lanes) {
    if (lanes == 0xffff && index[15] == index[0] + 15) return _mm512_loadu_ps(weights + index[0]);
    const __m512i at = _mm512_maskz_loadu_epi32(lanes, index);
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, at, weights, 4);
}

inline void drop_below(const float* values, const float* weights, const int32_t* index, float threshold, int32_t n,
                       uint32_t* bits) {
    const __m512 limit = _mm512_set1_ps(threshold);
    for (int32_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = n - i < 16 ? first_lanes(n - i) : __mmask16{0xffff};
        const __m512 score = _mm512_mul_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, values + i)),
                                           listed_weights(weights, index + i, lanes));
        const __mmask16 below = _mm512_mask_cmp_ps_mask(lanes, score, limit, _CMP_LT_OQ);
        bits[i / 32] &= ~(static_cast<uint32_t>(below) << (i % 32));
    }
}

inline void clear_unmarked(const uint32_t* bits, int32_t n, float* values) {
    for (int32_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = n - i < 16 ? first_lanes(n - i) : __mmask16{0xffff};
        _mm512_mask_storeu_ps(values + i, lanes, _mm512_maskz_loadu_ps(marks_at(bits, i) & lanes, values + i));
    }
}

// Compressed in registers: compressing stores are slow on some processors.
inline int32_t gather_marked(const uint32_t* bits, int32_t n, const void* from, void* to) {
    const auto* source = static_cast<const int32_t*>(from);
    auto* target = static_cast<int32_t*>(to);
    int32_t count = 0;
    for (int32_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = n - i < 16 ? first_lanes(n - i) : __mmask16{0xffff};
        const __mmask16 marks = marks_at(bits, i) & lanes;
        const __m512i block = _mm512_maskz_compress_epi32(marks, _mm512_maskz_loadu_epi32(lanes, source + i));
        _mm512_mask_storeu_epi32(target + count, first_lanes(__builtin_popcount(marks)), block);
        count += __builtin_popcount(marks);
    }
    return count;
}

}  // namespace
}  // namespace glass
