// AVX-512 pieces shared by the row and the panel kernels: transposition, and the order in which the 16 partial sums
// of a dot product are folded. Included by kernels_avx512_vnni.cpp only.
//
// A dot product of quantized codes takes the whole blocks of 16 groups first: 16 float partial sums a[0..15], group
// kLaneGroup[lane] of every block into a[lane], ascending; folded as f[j] = ((a[j] + a[j+4]) + a[j+8]) + a[j+12],
// total = ((f[0] + f[1]) + f[2]) + f[3]. The groups after the last whole block are then added to the total one by one.
// bfloat16: a[k mod 16], folded alike. Whatever the tiling, that order is kept: it is what makes a row's result
// independent of the batch.
#pragma once

// GCC's own headers warn about the values they leave undefined on purpose
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "common.h"

namespace glass {
namespace {

// Within each 128-bit lane: v[i] lane element j <-> v[j] lane element i.
inline void transpose_in_lanes(__m512i v[4]) {
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

// 128-bit lane j of v[i] <-> lane i of v[j].
inline void transpose_lanes(__m512i& v0, __m512i& v1, __m512i& v2, __m512i& v3) {
    const __m512i a = _mm512_shuffle_i32x4(v0, v1, 0x44), b = _mm512_shuffle_i32x4(v0, v1, 0xee);
    const __m512i c = _mm512_shuffle_i32x4(v2, v3, 0x44), d = _mm512_shuffle_i32x4(v2, v3, 0xee);
    v0 = _mm512_shuffle_i32x4(a, c, 0x88);
    v1 = _mm512_shuffle_i32x4(a, c, 0xdd);
    v2 = _mm512_shuffle_i32x4(b, d, 0x88);
    v3 = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// 16 x 16 elements of 4 bytes: v[i] element j <-> v[j] element i.
inline void transpose16(__m512i v[16]) {
    for (int i = 0; i < 16; i += 4) transpose_in_lanes(v + i);
    for (int i = 0; i < 4; ++i) transpose_lanes(v[i], v[i + 4], v[i + 8], v[i + 12]);
}

inline __m512 sum4(__m512 a, __m512 b, __m512 c, __m512 d) {
    return _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), c), d);
}

// Element i of the result is the fold of partials[16*i .. 16*i + 15].
inline __m512 fold16(const float* partials) {
    __m512i sums[4];
    for (int e = 0; e < 4; ++e) {
        __m512i rows[4];
        for (int lane = 0; lane < 4; ++lane) rows[lane] = _mm512_load_si512(partials + 16 * (4 * lane + e));
        transpose_lanes(rows[0], rows[1], rows[2], rows[3]);
        sums[e] = _mm512_castps_si512(sum4(_mm512_castsi512_ps(rows[0]), _mm512_castsi512_ps(rows[1]),
                                           _mm512_castsi512_ps(rows[2]), _mm512_castsi512_ps(rows[3])));
    }
    transpose_in_lanes(sums);
    return sum4(_mm512_castsi512_ps(sums[0]), _mm512_castsi512_ps(sums[1]), _mm512_castsi512_ps(sums[2]),
                _mm512_castsi512_ps(sums[3]));
}

// The low n bits set; n in [0, 16].
inline __mmask16 first_lanes(int32_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

// The low and high halves of 16 dwords as floats.
inline __m512 low_halves(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
inline __m512 high_halves(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16))); }

inline __m512 load_bf16(const void* p) {
    const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// The 64 codes of one packed chunk as unsigned bytes, in order.
template <Format F>
inline __m512i load_codes(const uint8_t* row, int32_t chunk) {
    if constexpr (F == Format::q8) return _mm512_loadu_si512(row + 64 * chunk);
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32 * chunk)));
    const __m512i shift = _mm512_set_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi32(both, shift), _mm512_set1_epi8(15));
}

// Which group of a block of 16 a lane holds: what redistribute and sum_pairs (avx512_rows.h) make of packed rows.
template <Format F>
inline constexpr uint8_t kLaneGroup[16] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
template <>
inline constexpr uint8_t kLaneGroup<Format::q8>[16] = {0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15};

// The activations of one call, with what q8 rows need besides: corrections[t*groups + g] = -128 * (sum of the codes of
// group g), because their codes are stored + 128.
struct Rows512 {
    ActivationView x;
    const int32_t* corrections;
    int32_t groups;
};

}  // namespace
}  // namespace glass
