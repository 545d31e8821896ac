// AVX-512 dot products for few activation rows: one weight row at a time, lanes = groups, so that the packed row is
// read once, in order. Included by kernels_avx512_vnni.cpp only.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

inline constexpr int32_t kRowsAhead = 8;  // prefetch distance in weight rows

// Sums the 8 lanes of each half of v[0..7]; element 2c of the result is the low half of v[c], 2c+1 the high half.
inline __m512i sum_halves(const __m512i v[8]) {
    __m512i pairs[4], quads[2];
    for (int i = 0; i < 4; ++i) {
        pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                    _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    }
    for (int i = 0; i < 2; ++i) {
        quads[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                    _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
    }
    const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[0], quads[1], 0x88),
                                          _mm512_shuffle_i32x4(quads[0], quads[1], 0xdd));
    const __m512i order = _mm512_set_epi32(15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
    return _mm512_permutexvar_epi32(order, sums);
}

// Integer dot products of 2*C groups (element = group) with the unpacked codes w[0..C).
template <int C>
inline __m512i group_dots(const __m512i* w, const int8_t* x) {
    __m512i v[8];
    for (int c = 0; c < 8; ++c) {
        v[c] = c < C ? _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[c], _mm512_loadu_si512(x + 64 * c))
                     : _mm512_setzero_si512();
    }
    return sum_halves(v);
}

// C chunks (2*C groups, from group `g` on) of one weight row against T activation rows.
template <Format F, int T, int C>
inline void dot_chunks(const uint8_t* row, int32_t g, const Rows512& a, __m512 partials[T]) {
    constexpr __mmask16 mask = static_cast<__mmask16>((1u << (2 * C)) - 1u);
    __m512i w[C];
    for (int c = 0; c < C; ++c) w[c] = load_codes<F>(row, g / 2 + c);
    __m512 d, m = _mm512_setzero_ps();
    if constexpr (F == Format::q4) {
        const __m512i scales = _mm512_maskz_loadu_epi32(mask, row + a.groups * 16 + 4 * g);
        d = low_halves(scales);
        m = high_halves(scales);
    } else {
        d = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + a.groups * 32 + 2 * g));
    }
    for (int t = 0; t < T; ++t) {
        __m512i dots = group_dots<C>(w, a.x.codes + t * a.x.codes_stride + 32 * g);
        if constexpr (F == Format::q8) {
            dots = _mm512_add_epi32(dots, _mm512_maskz_loadu_epi32(mask, a.corrections + t * a.groups + g));
        }
        const size_t at = t * a.x.groups_stride + g;
        const __m512 scale = _mm512_mul_ps(d, _mm512_maskz_loadu_ps(mask, a.x.scales + at));
        partials[t] = _mm512_mask3_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, partials[t], mask);
        if constexpr (F == Format::q4) {
            partials[t] = _mm512_mask3_fmadd_ps(m, _mm512_maskz_loadu_ps(mask, a.x.sums + at), partials[t], mask);
        }
    }
}

inline void prefetch_chunks(const uint8_t* row, int32_t bytes, int32_t from) {
    for (int32_t line = 0; line < bytes; line += 64) _mm_prefetch(reinterpret_cast<const char*>(row + from + line), _MM_HINT_T0);
}

template <Format F, int T, int Tail>
inline void dot_row512(const uint8_t* row, const uint8_t* ahead, const Rows512& a, float* partials) {
    constexpr int32_t block_bytes = F == Format::q4 ? 256 : 512;
    __m512 sums[T];
    for (int t = 0; t < T; ++t) sums[t] = _mm512_setzero_ps();
    const int32_t whole = a.groups / 16;
    for (int32_t b = 0; b < whole; ++b) {
        prefetch_chunks(ahead, block_bytes, b * block_bytes);
        dot_chunks<F, T, 8>(row, 16 * b, a, sums);
    }
    // the last chunks and the scales
    constexpr int32_t group_bytes = F == Format::q4 ? 4 : 2;
    prefetch_chunks(ahead, Tail * block_bytes / 8 + a.groups * group_bytes, whole * block_bytes);
    if constexpr (Tail > 0) dot_chunks<F, T, Tail>(row, 16 * whole, a, sums);
    for (int t = 0; t < T; ++t) _mm512_store_ps(partials + 256 * t, sums[t]);
}

template <Format F, int T, int Tail>
void dot_rows_tail(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const Rows512& a, float* out,
                   size_t out_stride) {
    alignas(64) float partials[T * 256];
    for (int32_t i = 0; i < n; i += 16) {
        const int32_t count = n - i < 16 ? n - i : 16;
        for (int32_t r = 0; r < count; ++r) {
            const int32_t ahead = i + r + kRowsAhead < n ? i + r + kRowsAhead : n - 1;
            dot_row512<F, T, Tail>(row_at(rows, index, first, i + r), row_at(rows, index, first, ahead), a,
                                   partials + 16 * r);
        }
        for (int t = 0; t < T; ++t) {
            _mm512_mask_storeu_ps(out + t * out_stride + i, first_lanes(count), fold16(partials + 256 * t));
        }
    }
}

using RowsFunction = void (*)(const RowsView&, const int32_t*, int32_t, int32_t, const Rows512&, float*, size_t);

// Chooses by the number of chunks after the last whole block of 8.
template <Format F, int T>
void dot_few(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const Rows512& a, float* out,
             size_t out_stride) {
    static constexpr RowsFunction by_tail[8] = {
        dot_rows_tail<F, T, 0>, dot_rows_tail<F, T, 1>, dot_rows_tail<F, T, 2>, dot_rows_tail<F, T, 3>,
        dot_rows_tail<F, T, 4>, dot_rows_tail<F, T, 5>, dot_rows_tail<F, T, 6>, dot_rows_tail<F, T, 7>};
    by_tail[rows.cols_padded / kChunk % 8](rows, index, first, n, a, out, out_stride);
}

}  // namespace
}  // namespace glass
