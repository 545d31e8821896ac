// AVX-512 down projection over neuron-major columns. Four neurons of a group are interleaved byte by byte so that one
// VNNI instruction adds 4 neurons x 16 outputs; z is a 15-bit integer, applied as two signed bytes, high*128 + low.
// Included by kernels_avx512_vnni.cpp only.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

inline constexpr int kDownTokens = 2;

// z of one row over one group: 8 quads of neurons, 4 signed bytes each.
struct Z512 {
    int32_t high[8];
    int32_t low[8];
    float scale;
    int32_t sum;  // of the 15-bit codes
    int32_t row;
    int32_t unused;
};

// One group's neurons: their columns, those of a later group to prefetch, and the group's scales.
struct Group512 {
    const uint8_t* columns[kGroup];
    const uint8_t* ahead[kGroup];
    int32_t quads;
    const uint16_t* d;
    const uint16_t* m;
};

// False if all z are 0. Same rounding as quantize_down.
inline bool quantize_z(const float* z, int32_t n, int32_t row, Z512& out) {
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(n < 16 ? n : 16), z);
    const __m512 b = n > 16 ? _mm512_maskz_loadu_ps(first_lanes(n - 16), z + 16) : _mm512_setzero_ps();
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    if (largest < kTiniest) return false;
    const __m512 inverse = _mm512_set1_ps(kDownSteps / largest);
    const __m512i codes_a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
    const __m512i codes_b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    const __m512i half = _mm512_set1_epi32(64);
    const __m512i high_a = _mm512_srai_epi32(_mm512_add_epi32(codes_a, half), 7);
    const __m512i high_b = _mm512_srai_epi32(_mm512_add_epi32(codes_b, half), 7);
    const __m512i low_a = _mm512_sub_epi32(codes_a, _mm512_slli_epi32(high_a, 7));
    const __m512i low_b = _mm512_sub_epi32(codes_b, _mm512_slli_epi32(high_b, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high), _mm512_cvtepi32_epi8(high_a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high + 4), _mm512_cvtepi32_epi8(high_b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low), _mm512_cvtepi32_epi8(low_a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low + 4), _mm512_cvtepi32_epi8(low_b));
    out.sum = _mm512_reduce_add_epi32(_mm512_add_epi32(codes_a, codes_b));
    out.scale = largest / kDownSteps;
    out.row = row;
    return true;
}

// 64 codes of a column as bytes, dwords transposed (dword 4L+j = outputs 16j+4L..): what interleave4 puts in order.
template <Format F>
inline __m512i load_column(const uint8_t* column, int32_t chunk) {
    if constexpr (F == Format::q8) {
        const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(column + 64 * chunk));
    }
    // outputs 32.. are the high nibbles of the same bytes: dwords 8..15 are dwords 0..7 shifted
    const __m512i order = _mm512_set_epi32(7, 3, 7, 3, 6, 2, 6, 2, 5, 1, 5, 1, 4, 0, 4, 0);
    const __m512i shift = _mm512_set_epi32(4, 4, 0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4, 0, 0);
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column + 32 * chunk));
    const __m512i spread = _mm512_permutexvar_epi32(order, _mm512_castsi256_si512(packed));
    return _mm512_and_si512(_mm512_srlv_epi32(spread, shift), _mm512_set1_epi8(15));
}

// out[j] dword e = the codes of 4 neurons for output 16j + e.
inline void interleave4(const __m512i v[4], __m512i out[4]) {
    const __m512i a = _mm512_unpacklo_epi8(v[0], v[1]), b = _mm512_unpackhi_epi8(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi8(v[2], v[3]), d = _mm512_unpackhi_epi8(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi16(a, c);
    out[1] = _mm512_unpackhi_epi16(a, c);
    out[2] = _mm512_unpacklo_epi16(b, d);
    out[3] = _mm512_unpackhi_epi16(b, d);
}

// 64 outputs of one group.
struct DownBlock {
    __m512i codes[8][4];
    __m512 d[4];
    __m512 m[4];
};

template <Format F>
inline void fill_block(const Group512& group, int32_t chunk, DownBlock& block) {
    for (int32_t q = 0; q < group.quads; ++q) {
        __m512i v[4];
        for (int i = 0; i < 4; ++i) {
            v[i] = load_column<F>(group.columns[4 * q + i], chunk);
            _mm_prefetch(reinterpret_cast<const char*>(group.ahead[4 * q + i] + (F == Format::q4 ? 32 : 64) * chunk),
                         _MM_HINT_T0);
        }
        interleave4(v, block.codes[q]);
    }
    for (int j = 0; j < 4; ++j) {
        const int32_t h = 64 * chunk + 16 * j;
        block.d[j] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.d + h)));
        if constexpr (F == Format::q4) {
            block.m[j] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.m + h)));
        }
    }
}

// y[h..h+63] of T rows += the block's contribution.
template <Format F, int T>
inline void apply_block(const DownBlock& block, int32_t quads, const Z512* z, float* y, size_t y_stride) {
    __m512i high[T][4], low[T][4];
    for (int t = 0; t < T; ++t) {
        const __m512i start = _mm512_set1_epi32(F == Format::q8 ? -128 * z[t].sum : 0);
        for (int j = 0; j < 4; ++j) {
            low[t][j] = start;
            high[t][j] = _mm512_setzero_si512();
        }
    }
    for (int32_t q = 0; q < quads; ++q) {
        for (int t = 0; t < T; ++t) {
            const __m512i z_high = _mm512_set1_epi32(z[t].high[q]), z_low = _mm512_set1_epi32(z[t].low[q]);
            for (int j = 0; j < 4; ++j) {
                high[t][j] = _mm512_dpbusd_epi32(high[t][j], block.codes[q][j], z_high);
                low[t][j] = _mm512_dpbusd_epi32(low[t][j], block.codes[q][j], z_low);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        float* y_row = y + z[t].row * y_stride;
        const __m512 scale = _mm512_set1_ps(z[t].scale);
        const __m512 sum = _mm512_set1_ps(z[t].scale * static_cast<float>(z[t].sum));
        for (int j = 0; j < 4; ++j) {
            const __m512i dots = _mm512_add_epi32(_mm512_slli_epi32(high[t][j], 7), low[t][j]);
            __m512 result = _mm512_loadu_ps(y_row + 16 * j);
            result = _mm512_fmadd_ps(block.d[j], _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale), result);
            if constexpr (F == Format::q4) result = _mm512_fmadd_ps(block.m[j], sum, result);
            _mm512_storeu_ps(y_row + 16 * j, result);
        }
    }
}

template <Format F>
inline void down_group512(const Group512& group, int32_t hidden_padded, const Z512* z, int32_t active, float* y,
                          size_t y_stride) {
    DownBlock block;
    for (int32_t chunk = 0; chunk < hidden_padded / kChunk; ++chunk) {
        fill_block<F>(group, chunk, block);
        int32_t t = 0;
        for (; t + kDownTokens <= active; t += kDownTokens) {
            apply_block<F, kDownTokens>(block, group.quads, z + t, y + 64 * chunk, y_stride);
        }
        for (; t < active; ++t) apply_block<F, 1>(block, group.quads, z + t, y + 64 * chunk, y_stride);
    }
}

// index[0, count) lie in one group; `left` more follow in index.
inline void gather_group(const DownView& down, const int32_t* index, int32_t count, int32_t left, Group512& group) {
    group.quads = (count + 3) / 4;
    for (int32_t i = 0; i < 4 * group.quads; ++i) {
        // the padding of the last quad meets z codes of 0
        const int32_t at = i < count ? i : count - 1;
        const int32_t ahead = at + count < left ? at + count : left - 1;
        group.columns[i] = down.base + index[at] * down.stride;
        group.ahead[i] = down.base + index[ahead] * down.stride;
    }
    const size_t plane = static_cast<size_t>(down.hidden_padded);
    group.d = down.scales + static_cast<size_t>(index[0] / kGroup) * plane * (down.format == Format::q4 ? 2 : 1);
    group.m = group.d + plane;
}

template <Format F>
void accumulate_quantized(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                          int32_t num_rows, float* y, size_t y_stride) {
    Z512* codes = static_cast<Z512*>(kernel_scratch(num_rows * sizeof(Z512)));
    Group512 group;
    for (int32_t i = 0, count = 0; i < n; i += count) {
        count = same_group(index + i, n - i);
        int32_t active = 0;
        for (int32_t t = 0; t < num_rows; ++t) active += quantize_z(z + t * z_stride + i, count, t, codes[active]);
        if (active == 0) continue;
        gather_group(down, index + i, count, n - i, group);
        down_group512<F>(group, down.hidden_padded, codes, active, y, y_stride);
    }
}

}  // namespace
}  // namespace glass
