// AVX-512 kernels for bfloat16 weights with float32 activations: widened exactly, multiplied and added in float32.
// Included by kernels_avx512_vnni.cpp only.
#pragma once

#include "avx512_fold.h"

namespace glass {
namespace {

inline constexpr int kBf16Tokens = 4;
inline constexpr int32_t kBf16RowsAhead = 4;

// 4 weight rows against T activation rows; partial sums to partials[(t*16 + r)*16 ..].
template <int T>
inline void dot_bf16_rows4(const uint8_t* const row[4], const uint8_t* const ahead[4], int32_t cols, const float* x,
                           size_t x_stride, float* partials) {
    __m512 sums[T][4];
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 4; ++r) sums[t][r] = _mm512_setzero_ps();
    }
    for (int32_t k = 0; k < cols; k += 16) {
        __m512 w[4];
        for (int r = 0; r < 4; ++r) w[r] = load_bf16(row[r] + 2 * k);
        if (k % 32 == 0) {
            for (int r = 0; r < 4; ++r) _mm_prefetch(reinterpret_cast<const char*>(ahead[r] + 2 * k), _MM_HINT_T0);
        }
        for (int t = 0; t < T; ++t) {
            const __m512 values = _mm512_loadu_ps(x + t * x_stride + k);
            for (int r = 0; r < 4; ++r) sums[t][r] = _mm512_fmadd_ps(w[r], values, sums[t][r]);
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 4; ++r) _mm512_store_ps(partials + (t * 16 + r) * 16, sums[t][r]);
    }
}

// Up to 16 weight rows, from `i` on, against T activation rows from t0 on.
template <int T>
void dot_bf16_tile(const RowsView& rows, const int32_t* index, int32_t first, int32_t i, int32_t n,
                   const ActivationView& x, int32_t t0, float* out, size_t out_stride) {
    alignas(64) float partials[T * 256];
    const int32_t count = n - i < 16 ? n - i : 16;
    for (int32_t r = 0; r < count; r += 4) {
        const uint8_t* row[4];
        const uint8_t* ahead[4];
        for (int32_t j = 0; j < 4; ++j) {
            const int32_t at = i + r + j, next = at + kBf16RowsAhead;
            row[j] = row_at(rows, index, first, at < n ? at : n - 1);
            ahead[j] = row_at(rows, index, first, next < n ? next : n - 1);
        }
        dot_bf16_rows4<T>(row, ahead, rows.cols_padded, x.values + t0 * x.values_stride, x.values_stride,
                          partials + 16 * r);
    }
    for (int t = 0; t < T; ++t) {
        _mm512_mask_storeu_ps(out + (t0 + t) * out_stride + i, first_lanes(count), fold16(partials + 256 * t));
    }
}

void dot_bf16_many(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                   float* out, size_t out_stride) {
    for (int32_t i = 0; i < n; i += 16) {
        int32_t t = 0;
        for (; t + kBf16Tokens <= x.num_rows; t += kBf16Tokens) {
            dot_bf16_tile<kBf16Tokens>(rows, index, first, i, n, x, t, out, out_stride);
        }
        for (; t < x.num_rows; ++t) dot_bf16_tile<1>(rows, index, first, i, n, x, t, out, out_stride);
    }
}

// y[h..h+63] of T rows += z * column, neuron after neuron.
template <int T>
inline void down_bf16_block(const uint8_t* const* columns, int32_t count, int32_t h, const float* z, size_t z_stride,
                            float* y, size_t y_stride) {
    __m512 sums[T][4];
    for (int t = 0; t < T; ++t) {
        for (int j = 0; j < 4; ++j) sums[t][j] = _mm512_loadu_ps(y + t * y_stride + h + 16 * j);
    }
    for (int32_t i = 0; i < count; ++i) {
        for (int j = 0; j < 4; ++j) {
            const __m512 w = load_bf16(columns[i] + 2 * (h + 16 * j));
            for (int t = 0; t < T; ++t) {
                sums[t][j] = _mm512_fmadd_ps(w, _mm512_set1_ps(z[t * z_stride + i]), sums[t][j]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int j = 0; j < 4; ++j) _mm512_storeu_ps(y + t * y_stride + h + 16 * j, sums[t][j]);
    }
}

void accumulate_bf16(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                     int32_t num_rows, float* y, size_t y_stride) {
    const uint8_t* columns[kGroup];
    for (int32_t i = 0; i < n; i += kGroup) {
        const int32_t count = n - i < kGroup ? n - i : kGroup;
        for (int32_t j = 0; j < count; ++j) columns[j] = down.base + index[i + j] * down.stride;
        for (int32_t h = 0; h < down.hidden_padded; h += 64) {
            for (int32_t j = i + kGroup; j < n && j < i + 2 * kGroup; ++j) {
                const char* next = reinterpret_cast<const char*>(down.base + index[j] * down.stride + 2 * h);
                _mm_prefetch(next, _MM_HINT_T0);
                _mm_prefetch(next + 64, _MM_HINT_T0);
            }
            int32_t t = 0;
            for (; t + kBf16Tokens <= num_rows; t += kBf16Tokens) {
                down_bf16_block<kBf16Tokens>(columns, count, h, z + t * z_stride + i, z_stride, y + t * y_stride, y_stride);
            }
            for (; t < num_rows; ++t) {
                down_bf16_block<1>(columns, count, h, z + t * z_stride + i, z_stride, y + t * y_stride, y_stride);
            }
        }
    }
}

}  // namespace
}  // namespace glass
