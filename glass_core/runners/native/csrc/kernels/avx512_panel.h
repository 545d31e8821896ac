// AVX-512 dot products for many activation rows: 16 weight rows are unpacked once into a panel whose lanes are weight
// rows, so that scales apply lane by lane and no sum runs across lanes. Included by kernels_avx512_vnni.cpp only.
//
// A panel is a sequence of records, one per group, in the order in which the fold takes them (see avx512_fold.h):
// 8 x R vectors of codes (4 values of 16 rows each), R vectors of d, R vectors of m.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

inline constexpr int kPanelTokens = 4;

template <int R>
inline constexpr size_t kRecordBytes = 64 * 10 * R;

// Where group g stands in a panel: partial sums j, j+4, j+8, j+12 for j = 0..3, then the groups after the last block.
template <Format F>
inline void order_groups(int32_t groups, int32_t* position) {
    const int32_t whole = groups / 16 * 16;
    int32_t next = 0;
    for (int32_t j = 0; j < 4; ++j) {
        for (int32_t lane = j; lane < 16; lane += 4) {
            for (int32_t g = kLaneGroup<F>[lane]; g < whole; g += 16) position[g] = next++;
        }
    }
    for (int32_t g = whole; g < groups; ++g) position[g] = next++;
}

// The codes of 16 rows into block r of every record.
template <Format F, int R>
void fill_codes(const uint8_t* const* rows, const uint8_t* const* ahead, int32_t groups, const int32_t* position,
                uint8_t* panel) {
    for (int32_t chunk = 0; chunk < groups / 2; ++chunk) {
        __m512i v[16];
        for (int i = 0; i < 16; ++i) {
            v[i] = load_codes<F>(rows[i], chunk);
            _mm_prefetch(reinterpret_cast<const char*>(ahead[i] + (F == Format::q4 ? 32 : 64) * chunk), _MM_HINT_T1);
        }
        transpose16(v);
        for (int half = 0; half < 2; ++half) {
            uint8_t* record = panel + kRecordBytes<R> * position[2 * chunk + half];
            for (int q = 0; q < 8; ++q) _mm512_store_si512(record + 64 * R * q, v[8 * half + q]);
        }
    }
}

// The scales of 16 rows into block r of every record; `v` holds a dword per row: (d, m) of a group for q4, d of two
// groups for q8.
template <Format F, int R>
void fill_scales(const uint8_t* const* rows, int32_t groups, const int32_t* position, uint8_t* panel) {
    const int32_t dwords = F == Format::q4 ? groups : groups / 2;
    const int32_t offset = F == Format::q4 ? groups * 16 : groups * 32;
    constexpr size_t d_at = 64 * 8 * R, m_at = 64 * 9 * R;
    for (int32_t from = 0; from < dwords; from += 16) {
        const int32_t count = dwords - from < 16 ? dwords - from : 16;
        __m512i v[16];
        for (int i = 0; i < 16; ++i) v[i] = _mm512_maskz_loadu_epi32(first_lanes(count), rows[i] + offset + 4 * from);
        transpose16(v);
        alignas(64) __m512i columns[16];
        for (int i = 0; i < 16; ++i) columns[i] = v[i];
        for (int32_t i = 0; i < count; ++i) {
            if constexpr (F == Format::q4) {
                uint8_t* record = panel + kRecordBytes<R> * position[from + i];
                _mm512_store_ps(record + d_at, low_halves(columns[i]));
                _mm512_store_ps(record + m_at, high_halves(columns[i]));
            } else {
                _mm512_store_ps(panel + kRecordBytes<R> * position[2 * (from + i)] + d_at, low_halves(columns[i]));
                _mm512_store_ps(panel + kRecordBytes<R> * position[2 * (from + i) + 1] + d_at, high_halves(columns[i]));
            }
        }
    }
}

// One group of the panel against T activation rows: partials[t][r] += d * scale * dot + m * sum.
template <Format F, int R, int T>
inline void panel_group(const uint8_t* record, int32_t g, int32_t t0, const Rows512& a, __m512 partials[T][R]) {
    const int8_t* codes = a.x.codes + t0 * a.x.codes_stride + 32 * g;
    const float* scales = a.x.scales + t0 * a.x.groups_stride + g;
    const float* sums = a.x.sums + t0 * a.x.groups_stride + g;
    __m512i dots[T][R];
    for (int t = 0; t < T; ++t) {
        __m512i start = _mm512_setzero_si512();
        if constexpr (F == Format::q8) start = _mm512_set1_epi32(a.corrections[(t0 + t) * a.groups + g]);
        for (int r = 0; r < R; ++r) dots[t][r] = start;
    }
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
        __m512i w[R];
        for (int r = 0; r < R; ++r) w[r] = _mm512_load_si512(record + 64 * (R * q + r));
        for (int t = 0; t < T; ++t) {
            int32_t four;
            __builtin_memcpy(&four, codes + t * a.x.codes_stride + 4 * q, 4);
            const __m512i x = _mm512_set1_epi32(four);
            for (int r = 0; r < R; ++r) dots[t][r] = _mm512_dpbusd_epi32(dots[t][r], w[r], x);
        }
    }
    for (int t = 0; t < T; ++t) {
        const __m512 scale = _mm512_set1_ps(scales[t * a.x.groups_stride]);
        for (int r = 0; r < R; ++r) {
            const __m512 d = _mm512_mul_ps(_mm512_load_ps(record + 64 * (8 * R + r)), scale);
            partials[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][r]), d, partials[t][r]);
        }
        if constexpr (F == Format::q4) {
            const __m512 sum = _mm512_set1_ps(sums[t * a.x.groups_stride]);
            for (int r = 0; r < R; ++r) {
                partials[t][r] = _mm512_fmadd_ps(_mm512_load_ps(record + 64 * (9 * R + r)), sum, partials[t][r]);
            }
        }
    }
}

// sums[t][r] = the partial sums of lanes j, j+4, j+8, j+12 over the blocks before group `whole`, folded. The records
// follow each other. A function of its own, with the totals in memory: GCC runs out of registers otherwise.
template <Format F, int R, int T>
[[gnu::noinline]] const uint8_t* panel_fold(const uint8_t* record, int32_t j, int32_t whole, int32_t t0,
                                            const Rows512& a, __m512 (*sums)[R]) {
    __m512 folds[T][R];
    for (int32_t lane = j; lane < 16; lane += 4) {
        __m512 partials[T][R];
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) partials[t][r] = _mm512_setzero_ps();
        }
        for (int32_t g = kLaneGroup<F>[lane]; g < whole; g += 16, record += kRecordBytes<R>) {
            panel_group<F, R, T>(record, g, t0, a, partials);
        }
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) folds[t][r] = lane == j ? partials[t][r] : _mm512_add_ps(folds[t][r], partials[t][r]);
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) sums[t][r] = folds[t][r];
    }
    return record;
}

// totals[t][r] += groups from g on.
template <Format F, int R, int T>
[[gnu::noinline]] void panel_tail(const uint8_t* record, int32_t g, int32_t t0, const Rows512& a, __m512 (*totals)[R]) {
    __m512 sums[T][R];
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) sums[t][r] = totals[t][r];
    }
    for (; g < a.groups; ++g, record += kRecordBytes<R>) panel_group<F, R, T>(record, g, t0, a, sums);
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) totals[t][r] = sums[t][r];
    }
}

// The whole panel against activation rows [t0, t0 + T), in the order of the fold.
template <Format F, int R, int T>
inline void panel_tile(const uint8_t* panel, int32_t t0, const Rows512& a, __m512 (*totals)[R]) {
    const int32_t whole = a.groups / 16 * 16;
    const uint8_t* record = panel;
    for (int32_t j = 0; j < 4; ++j) {
        __m512 sums[T][R];
        record = panel_fold<F, R, T>(record, j, whole, t0, a, sums);
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) totals[t][r] = j == 0 ? sums[t][r] : _mm512_add_ps(totals[t][r], sums[t][r]);
        }
    }
    if (whole < a.groups) panel_tail<F, R, T>(record, whole, t0, a, totals);
}

template <Format F, int R, int T>
void panel_store(const uint8_t* panel, int32_t t0, int32_t count, const Rows512& a, float* out, size_t out_stride) {
    __m512 totals[T][R];
    panel_tile<F, R, T>(panel, t0, a, totals);
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
            const int32_t left = count - 16 * r;
            _mm512_mask_storeu_ps(out + (t0 + t) * out_stride + 16 * r, first_lanes(left < 16 ? left : 16), totals[t][r]);
        }
    }
}

// Up to 16*R weight rows, at least 16*(R-1) + 1, against all activation rows. `next`: weight rows after these.
template <Format F, int R>
void panel_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t i, int32_t n, const Rows512& a,
                const int32_t* position, uint8_t* panel, float* out, size_t out_stride) {
    const int32_t count = n - i < 16 * R ? n - i : 16 * R;
    for (int32_t r = 0; r < R; ++r) {
        const uint8_t* row[16];
        const uint8_t* ahead[16];
        for (int32_t j = 0; j < 16; ++j) {
            const int32_t at = i + 16 * r + j;
            row[j] = row_at(rows, index, first, at < n ? at : n - 1);
            ahead[j] = row_at(rows, index, first, at + 16 * R < n ? at + 16 * R : n - 1);
        }
        fill_codes<F, R>(row, ahead, a.groups, position, panel + 64 * r);
        fill_scales<F, R>(row, a.groups, position, panel + 64 * r);
    }
    int32_t t = 0;
    for (; t + kPanelTokens <= a.x.num_rows; t += kPanelTokens) {
        panel_store<F, R, kPanelTokens>(panel, t, count, a, out + i, out_stride);
    }
    for (; t < a.x.num_rows; ++t) panel_store<F, R, 1>(panel, t, count, a, out + i, out_stride);
}

// `scratch` holds dot_many_scratch bytes, aligned to 64.
template <Format F>
void dot_many(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const Rows512& a, float* out,
              size_t out_stride, void* scratch) {
    uint8_t* panel = static_cast<uint8_t*>(scratch);
    int32_t* position = reinterpret_cast<int32_t*>(panel + kRecordBytes<2> * a.groups);
    order_groups<F>(a.groups, position);
    for (int32_t i = 0; i < n; i += 32) {
        if (n - i > 16) {
            panel_rows<F, 2>(rows, index, first, i, n, a, position, panel, out, out_stride);
        } else {
            panel_rows<F, 1>(rows, index, first, i, n, a, position, panel, out, out_stride);
        }
    }
}

inline size_t dot_many_scratch(int32_t groups) { return groups * (kRecordBytes<2> + sizeof(int32_t)); }

}  // namespace
}  // namespace glass
