// AVX-512 dot products for few activation rows: weight rows are read once, in order, with lanes = groups. Packed
// dwords are redistributed before they are unpacked, so that every vector holds a piece of 16 groups and VNNI itself
// does nearly all of the summation. Included by kernels_avx512_vnni.cpp only.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

inline constexpr int32_t kFewRows = 8;

// How far ahead rows are prefetched, and once more half as far: the second-level cache drops prefetches that it has no
// place for. Those into the first level wait instead, and rows of a list then come half as fast.
inline constexpr int32_t kBytesAhead = 8192;

// v holds 8 pieces of 4 qwords, two a vector. Afterwards v[j] holds qword {0, 2, 1, 3}[j] of all, in the order
// of pieces 0, 2, 1, 3, 4, 6, 5, 7.
inline void redistribute(__m512i v[4]) {
    const __m512i a = _mm512_unpacklo_epi64(v[0], v[1]), b = _mm512_unpackhi_epi64(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi64(v[2], v[3]), d = _mm512_unpackhi_epi64(v[2], v[3]);
    v[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    v[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// Sums the dwords of each qword; a 128-bit lane holds two sums of a, then two of b.
inline __m512i sum_pairs(__m512i a, __m512i b) {
    const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}

inline __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi32(v, 4)); }

// 16 groups of a weight row: w[0..3] and w[4..7] are the halves that sum_pairs joins.
template <Format F>
inline void load_block(const uint8_t* block, __m512i w[8]) {
    for (int i = 0; i < (F == Format::q4 ? 4 : 8); ++i) w[i] = _mm512_loadu_si512(block + 64 * i);
    redistribute(w);
    if constexpr (F == Format::q8) return redistribute(w + 4);
    for (int i = 0; i < 4; ++i) {
        w[4 + i] = high_nibbles(w[i]);
        w[i] = low_nibbles(w[i]);
    }
}

// 16 groups of an activation row, arranged like load_block's codes and kLaneGroup's lanes.
struct ArrangedBlock {
    __m512i codes[8];
    __m512 scales;
    __m512 sums;          // q4
    __m512i corrections;  // q8
};

template <Format F>
inline __m512i lane_groups() {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kLaneGroup<F>)));
}

template <Format F>
inline void arrange_block(const Rows512& a, int32_t t, int32_t b, ArrangedBlock& out) {
    const int8_t* codes = a.x.codes + t * a.x.codes_stride + 512 * b;
    __m512i v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm512_loadu_si512(codes + 64 * i);
    if constexpr (F == Format::q4) {
        // the low nibbles are the even groups
        const __m512i* from = v;
        __m512i halves[8];
        for (int i = 0; i < 4; ++i) {
            halves[i] = _mm512_shuffle_i32x4(from[2 * i], from[2 * i + 1], 0x44);
            halves[4 + i] = _mm512_shuffle_i32x4(from[2 * i], from[2 * i + 1], 0xee);
        }
        for (int i = 0; i < 8; ++i) v[i] = halves[i];
    }
    redistribute(v);
    redistribute(v + 4);
    for (int i = 0; i < 8; ++i) out.codes[i] = v[i];
    const size_t at = t * a.x.groups_stride + 16 * b;
    out.scales = _mm512_permutexvar_ps(lane_groups<F>(), _mm512_loadu_ps(a.x.scales + at));
    if constexpr (F == Format::q4) {
        out.sums = _mm512_permutexvar_ps(lane_groups<F>(), _mm512_loadu_ps(a.x.sums + at));
    } else {
        out.corrections = _mm512_permutexvar_epi32(lane_groups<F>(),
                                                   _mm512_loadu_si512(a.corrections + t * a.groups + 16 * b));
    }
}

// d (and m) of 16 groups in the order of kLaneGroup.
template <Format F>
inline void load_block_scales(const uint8_t* scales, __m512& d, __m512& m) {
    const __m512i order = lane_groups<F>();
    if constexpr (F == Format::q4) {
        const __m512i pairs = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(scales));
        d = low_halves(pairs);
        m = high_halves(pairs);
    } else {
        d = _mm512_permutexvar_ps(order, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales))));
    }
}

// The integer dot products of 16 groups.
template <Format F>
inline __m512i block_dots(const __m512i w[8], const ArrangedBlock& x) {
    __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) {
        first = _mm512_dpbusd_epi32(first, w[i], x.codes[i]);
        second = _mm512_dpbusd_epi32(second, w[4 + i], x.codes[4 + i]);
    }
    const __m512i dots = sum_pairs(first, second);
    return F == Format::q4 ? dots : _mm512_add_epi32(dots, x.corrections);
}

// The whole blocks of one weight row against all activation rows; partial sums to partials[256*t ..].
template <Format F>
inline void dot_blocks(const uint8_t* row, const Rows512& a, const ArrangedBlock* x, float* partials) {
    constexpr int32_t codes_bytes = F == Format::q4 ? 256 : 512, scales_bytes = F == Format::q4 ? 64 : 32;
    const int32_t whole = a.groups / 16;
    const uint8_t* scales = row + a.groups * (F == Format::q4 ? 16 : 32);
    for (int32_t b = 0; b < whole; ++b) {
        __m512i w[8];
        __m512 d, m;
        load_block<F>(row + codes_bytes * b, w);
        load_block_scales<F>(scales + scales_bytes * b, d, m);
        for (int32_t t = 0; t < a.x.num_rows; ++t) {
            const ArrangedBlock& block = x[t * whole + b];
            const __m512 dots = _mm512_cvtepi32_ps(block_dots<F>(w, block));
            __m512 sums = b == 0 ? _mm512_setzero_ps() : _mm512_load_ps(partials + 256 * t);
            sums = _mm512_fmadd_ps(dots, _mm512_mul_ps(d, block.scales), sums);
            if constexpr (F == Format::q4) sums = _mm512_fmadd_ps(m, block.sums, sums);
            _mm512_store_ps(partials + 256 * t, sums);
        }
    }
}

// One chunk (two groups) of 16 weight rows: lanes = rows.
struct TailChunk {
    __m512i w[4][4];
    __m512 d[2], m[2];
};

// The order of rows in which sum_pairs and tail_dots put lane i to row i.
template <Format F>
inline constexpr uint8_t kTailRow[16] = {0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15};
template <>
inline constexpr uint8_t kTailRow<Format::q8>[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};

inline __m512i join_halves(const uint8_t* a, const uint8_t* b) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)), 1);
}

template <Format F>
inline void load_tail_codes(const uint8_t* const* rows, int32_t chunk, __m512i w[4][4]) {
    const uint8_t* from[16];
    for (int i = 0; i < 16; ++i) from[i] = rows[kTailRow<F>[i]] + (F == Format::q4 ? 32 : 64) * chunk;
    if constexpr (F == Format::q8) {
        for (int i = 0; i < 16; ++i) w[i / 4][i % 4] = _mm512_loadu_si512(from[i]);
        for (int i = 0; i < 4; ++i) redistribute(w[i]);
        return;
    }
    for (int set = 0; set < 2; ++set) {
        __m512i packed[4];
        for (int i = 0; i < 4; ++i) packed[i] = join_halves(from[8 * set + 2 * i], from[8 * set + 2 * i + 1]);
        redistribute(packed);
        for (int i = 0; i < 4; ++i) {
            w[2 * set][i] = low_nibbles(packed[i]);
            w[2 * set + 1][i] = high_nibbles(packed[i]);
        }
    }
}

template <Format F>
inline void load_tail_scales(const uint8_t* const* rows, int32_t groups, int32_t chunk, TailChunk& tail) {
    alignas(64) uint32_t pairs[2][16];
    for (int i = 0; i < 16; ++i) {
        if constexpr (F == Format::q4) {
            __builtin_memcpy(&pairs[0][i], rows[i] + groups * 16 + 8 * chunk, 4);
            __builtin_memcpy(&pairs[1][i], rows[i] + groups * 16 + 8 * chunk + 4, 4);
        } else {
            __builtin_memcpy(&pairs[0][i], rows[i] + groups * 32 + 4 * chunk, 4);
        }
    }
    const __m512i even = _mm512_load_si512(pairs[0]);
    tail.d[0] = low_halves(even);
    if constexpr (F == Format::q4) {
        const __m512i odd = _mm512_load_si512(pairs[1]);
        tail.m[0] = high_halves(even);
        tail.d[1] = low_halves(odd);
        tail.m[1] = high_halves(odd);
    } else {
        tail.d[1] = high_halves(even);
    }
}

// The integer dot products of an even and an odd group with 16 rows.
template <Format F>
inline void tail_dots(const TailChunk& tail, const int8_t* x, __m512i& even, __m512i& odd) {
    __m512i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_setzero_si512();
    constexpr int qword[4] = {0, 2, 1, 3};
    for (int j = 0; j < 4; ++j) {
        int64_t low, high;
        __builtin_memcpy(&low, x + 8 * qword[j], 8);
        __builtin_memcpy(&high, x + 32 + 8 * qword[j], 8);
        const __m512i lows = _mm512_set1_epi64(low), highs = _mm512_set1_epi64(high);
        if constexpr (F == Format::q4) {
            for (int i = 0; i < 4; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], tail.w[i][j], i % 2 == 0 ? lows : highs);
        } else {
            const __m512i both = _mm512_mask_blend_epi64(0xcc, lows, highs);
            for (int i = 0; i < 4; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], tail.w[i][j], both);
        }
    }
    const __m512i a = sum_pairs(sums[0], sums[1]), b = sum_pairs(sums[2], sums[3]);
    even = F == Format::q4 ? _mm512_unpacklo_epi64(a, b) : _mm512_shuffle_i32x4(a, b, 0x88);
    odd = F == Format::q4 ? _mm512_unpackhi_epi64(a, b) : _mm512_shuffle_i32x4(a, b, 0xdd);
}

// totals[16*t ..] += the groups 2*chunk and 2*chunk + 1, one after the other.
template <Format F>
inline void add_tail(const uint8_t* const* rows, int32_t chunk, const Rows512& a, float* totals) {
    TailChunk tail;
    load_tail_codes<F>(rows, chunk, tail.w);
    load_tail_scales<F>(rows, a.groups, chunk, tail);
    for (int32_t t = 0; t < a.x.num_rows; ++t) {
        __m512i dots[2];
        tail_dots<F>(tail, a.x.codes + t * a.x.codes_stride + 64 * chunk, dots[0], dots[1]);
        __m512 total = _mm512_load_ps(totals + 16 * t);
        for (int i = 0; i < 2; ++i) {
            const int32_t g = 2 * chunk + i;
            if constexpr (F == Format::q8) {
                dots[i] = _mm512_add_epi32(dots[i], _mm512_set1_epi32(a.corrections[t * a.groups + g]));
            }
            const __m512 scale = _mm512_mul_ps(tail.d[i], _mm512_set1_ps(a.x.scales[t * a.x.groups_stride + g]));
            total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[i]), scale, total);
            if constexpr (F == Format::q4) {
                total = _mm512_fmadd_ps(tail.m[i], _mm512_set1_ps(a.x.sums[t * a.x.groups_stride + g]), total);
            }
        }
        _mm512_store_ps(totals + 16 * t, total);
    }
}

// All cache lines that a row touches.
inline void prefetch_row(const uint8_t* row, int32_t bytes) {
    const char* end = reinterpret_cast<const char*>(row + bytes);
    const char* line = reinterpret_cast<const char*>(row - reinterpret_cast<uintptr_t>(row) % 64);
    for (; line < end; line += 64) _mm_prefetch(line, _MM_HINT_T1);
}

inline size_t dot_few_scratch(int32_t groups, int32_t num_rows) {
    const size_t blocks = static_cast<size_t>(groups / 16);
    return num_rows * (blocks * sizeof(ArrangedBlock) + 256 * sizeof(float) + 16 * sizeof(float));
}

// `scratch` holds dot_few_scratch bytes, aligned to 64.
template <Format F>
void dot_few(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const Rows512& a, float* out,
             size_t out_stride, void* scratch) {
    const int32_t whole = a.groups / 16, row_bytes = a.groups * (F == Format::q4 ? 20 : 34);
    const int32_t near = kBytesAhead / 2 / row_bytes + 1, far = 2 * near;
    ArrangedBlock* x = static_cast<ArrangedBlock*>(scratch);
    float* partials = reinterpret_cast<float*>(x + static_cast<size_t>(a.x.num_rows) * whole);
    float* totals = partials + static_cast<size_t>(a.x.num_rows) * 256;
    for (int32_t t = 0; t < a.x.num_rows; ++t) {
        for (int32_t b = 0; b < whole; ++b) arrange_block<F>(a, t, b, x[t * whole + b]);
    }
    for (int32_t i = 0; i < n; i += 16) {
        const int32_t count = n - i < 16 ? n - i : 16;
        const uint8_t* row[16];
        for (int32_t r = 0; r < 16; ++r) row[r] = row_at(rows, index, first, i + (r < count ? r : count - 1));
        for (int32_t r = 0; r < count; ++r) {
            if (i + r + far < n) prefetch_row(row_at(rows, index, first, i + r + far), row_bytes);
            if (i + r + near < n) prefetch_row(row_at(rows, index, first, i + r + near), row_bytes);
            dot_blocks<F>(row[r], a, x, partials + 16 * r);
        }
        for (int32_t t = 0; t < a.x.num_rows; ++t) {
            _mm512_store_ps(totals + 16 * t, whole > 0 ? fold16(partials + 256 * t) : _mm512_setzero_ps());
        }
        for (int32_t chunk = 8 * whole; chunk < a.groups / 2; ++chunk) add_tail<F>(row, chunk, a, totals);
        for (int32_t t = 0; t < a.x.num_rows; ++t) {
            _mm512_mask_storeu_ps(out + t * out_stride + i, first_lanes(count), _mm512_load_ps(totals + 16 * t));
        }
    }
}

}  // namespace
}  // namespace glass
