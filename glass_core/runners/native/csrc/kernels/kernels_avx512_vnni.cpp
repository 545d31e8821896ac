// AVX-512 kernels with VNNI (F, BW, VL, DQ, VNNI): integer dot products of quantized codes, float32 for the rest.
#include "avx512_attention.h"
#include "avx512_bf16.h"
#include "avx512_down.h"
#include "avx512_panel.h"
#include "avx512_rows.h"
#include "avx512_select.h"
#include "tables.h"

namespace glass {
namespace {

void quantize(const float* x, int32_t cols, int32_t cols_padded, int8_t* codes, float* scales, float* sums) {
    for (int32_t g = 0; g < cols_padded / kGroup; ++g) {
        const int32_t left = cols - g * kGroup;
        const int32_t n = left < 0 ? 0 : (left < kGroup ? left : kGroup);
        const float* from = x + g * kGroup;
        const __m512 a = _mm512_maskz_loadu_ps(first_lanes(n < 16 ? n : 16), from);
        const __m512 b = n > 16 ? _mm512_maskz_loadu_ps(first_lanes(n - 16), from + 16) : _mm512_setzero_ps();
        const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const bool none = largest < kTiniest;
        const __m512 inverse = _mm512_set1_ps(none ? 0.0f : 127.0f / largest);
        const __m512i codes_a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
        const __m512i codes_b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
        __m128i* to = reinterpret_cast<__m128i*>(codes + g * kGroup);
        _mm_storeu_si128(to, _mm512_cvtepi32_epi8(codes_a));
        _mm_storeu_si128(to + 1, _mm512_cvtepi32_epi8(codes_b));
        scales[g] = none ? 0.0f : largest / 127.0f;
        sums[g] = scales[g] * static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(codes_a, codes_b)));
    }
}

// -128 * (sum of the codes of each group), for codes stored + 128.
void fill_corrections(const ActivationView& x, int32_t groups, int32_t* corrections) {
    const __m256i ones = _mm256_set1_epi8(1);
    for (int32_t t = 0; t < x.num_rows; ++t) {
        const int8_t* codes = x.codes + t * x.codes_stride;
        for (int32_t g = 0; g < groups; ++g) {
            const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * g));
            const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, v);
            __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
            corrections[t * groups + g] = -128 * _mm_cvtsi128_si32(sum);
        }
    }
}

// Few rows stream the weights; many share an unpacked panel. Both give the same bits.
template <Format F>
void dot_quantized(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                   float* out, size_t out_stride) {
    const int32_t groups = rows.cols_padded / kGroup;
    const bool few = x.num_rows <= kFewRows;
    const size_t work_bytes = few ? dot_few_scratch(groups, x.num_rows) : dot_many_scratch(groups);
    const size_t correction_bytes = F == Format::q8 ? sizeof(int32_t) * x.num_rows * groups : 0;
    uint8_t* scratch = static_cast<uint8_t*>(kernel_scratch(work_bytes + correction_bytes));
    int32_t* corrections = reinterpret_cast<int32_t*>(scratch + work_bytes);
    if constexpr (F == Format::q8) fill_corrections(x, groups, corrections);
    const Rows512 a = {x, corrections, groups};
    if (few) {
        dot_few<F>(rows, index, first, n, a, out, out_stride, scratch);
    } else {
        dot_many<F>(rows, index, first, n, a, out, out_stride, scratch);
    }
}

void dot_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
              float* out, size_t out_stride) {
    switch (rows.format) {
        case Format::q4:
            return dot_quantized<Format::q4>(rows, index, first, n, x, out, out_stride);
        case Format::q8:
            return dot_quantized<Format::q8>(rows, index, first, n, x, out, out_stride);
        default:
            return dot_bf16_many(rows, index, first, n, x, out, out_stride);
    }
}

void accumulate_down(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                     int32_t num_rows, float* y, size_t y_stride) {
    switch (down.format) {
        case Format::q4:
            return accumulate_quantized<Format::q4>(down, index, n, z, z_stride, num_rows, y, y_stride);
        case Format::q8:
            return accumulate_quantized<Format::q8>(down, index, n, z, z_stride, num_rows, y, y_stride);
        default:
            return accumulate_bf16(down, index, n, z, z_stride, num_rows, y, y_stride);
    }
}

}  // namespace

const Kernels kAvx512VnniKernels = {"avx512_vnni", quantize, dot_rows, accumulate_down, attend_span,
                                    drop_below, clear_unmarked, gather_marked};

}  // namespace glass
