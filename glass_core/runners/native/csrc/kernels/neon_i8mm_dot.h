// Dot products of two weight rows with pairs of activation rows by SMMLA, which makes four sums of 8 products at once.
// Every sum takes the values that one lane of the dot product instruction would, and floats follow narrow_body.h lane
// for lane, so that a row gets the bits of `neon_dotprod`. Included by kernels_neon_i8mm.cpp only.
#pragma once

#include "neon_primitives.h"

#include "narrow_body.h"

namespace glass {
namespace {

inline constexpr int32_t kPairBytes = 2 * kGroup;  // a group of two rows

// Two rows' codes of a group as the operands of four SMMLA: operand j holds what lane j of a dot product sums (values
// 4j .. 4j+3 and 16+4j .. 19+4j), of the first row and then of the second.
inline void store_pair(const Codes& a, const Codes& b, int8_t* to) {
    const auto zip = [](const Codes& c) {
        return int32x4x2_t{vzip1q_s32(vreinterpretq_s32_s8(c.v[0]), vreinterpretq_s32_s8(c.v[1])),
                           vzip2q_s32(vreinterpretq_s32_s8(c.v[0]), vreinterpretq_s32_s8(c.v[1]))};
    };
    const int32x4x2_t first = zip(a), second = zip(b);
    for (int half = 0; half < 2; ++half) {
        const int64x2_t x = vreinterpretq_s64_s32(first.val[half]), y = vreinterpretq_s64_s32(second.val[half]);
        vst1q_s8(to + 32 * half, vreinterpretq_s8_s64(vzip1q_s64(x, y)));
        vst1q_s8(to + 32 * half + 16, vreinterpretq_s8_s64(vzip2q_s64(x, y)));
    }
}

// All pairs of activation rows: codes [pairs][groups][kPairBytes], scales [pairs][groups][2].
struct PackedPairs {
    int8_t* codes;
    float* scales;
};

inline void pack_pairs(const ActivationView& x, int32_t groups, const PackedPairs& to) {
    int8_t* codes = to.codes;
    float* scales = to.scales;
    for (int32_t t = 0; t + 2 <= x.num_rows; t += 2) {
        const int8_t *a = x.codes + t * x.codes_stride, *b = a + x.codes_stride;
        for (int32_t g = 0; g < groups; ++g, codes += kPairBytes, scales += 2) {
            store_pair(P::load_x(a + kGroup * g), P::load_x(b + kGroup * g), codes);
            scales[0] = x.scales[t * x.groups_stride + g];
            scales[1] = x.scales[(t + 1) * x.groups_stride + g];
        }
    }
}

// Two weight rows, unpacked; the pointers to their packed bytes are for the activation row without a partner.
struct TwoRows {
    const uint8_t* row[2];
    int8_t* codes;  // [groups][kPairBytes]
    float* d[2];
    float* m[2];
    int32_t groups;
};

template <Format format>
inline void unpack_two(const TwoRows& w) {
    for (int r = 0; r < 2; ++r) load_scales<format>(w.row[r], w.groups, w.d[r], w.m[r]);
    for (int32_t g = 0; g < w.groups; g += 2) {
        Codes low[2], high[2];
        for (int r = 0; r < 2; ++r) {
            if constexpr (format == Format::q4) {
                P::unpack_q4(w.row[r] + kGroup / 2 * g, low[r], high[r]);
            } else {
                low[r] = P::load_q8(w.row[r] + kGroup * g);
                high[r] = P::load_q8(w.row[r] + kGroup * (g + 1));
            }
        }
        store_pair(low[0], low[1], w.codes + kPairBytes * g);
        store_pair(high[0], high[1], w.codes + kPairBytes * (g + 1));
    }
}

// The lanes of four dot products, gathered from the sums of the four operands.
inline void transpose4(const F (&sums)[4], F (&lanes)[4]) {
    for (int half = 0; half < 2; ++half) {
        const F a = half == 0 ? vzip1q_f32(sums[0], sums[1]) : vzip2q_f32(sums[0], sums[1]);
        const F b = half == 0 ? vzip1q_f32(sums[2], sums[3]) : vzip2q_f32(sums[2], sums[3]);
        const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
        lanes[2 * half] = vreinterpretq_f32_f64(vzip1q_f64(x, y));
        lanes[2 * half + 1] = vreinterpretq_f32_f64(vzip2q_f64(x, y));
    }
}

// dots[2*r + t]: lanes of the product of weight row r and activation row t of a pair.
inline void dot_pair(const TwoRows& w, const int8_t* x, const float* scales, F (&dots)[4]) {
    F sums[4] = {P::zero(), P::zero(), P::zero(), P::zero()};
    for (int32_t g = 0; g < w.groups; ++g) {
        const F d = vcombine_f32(vdup_n_f32(w.d[0][g]), vdup_n_f32(w.d[1][g]));
        const float32x2_t both = vld1_f32(scales + 2 * g);
        const F scale = P::mul(d, vcombine_f32(both, both));
        for (int j = 0; j < 4; ++j) {
            const int8x16_t a = vld1q_s8(w.codes + kPairBytes * g + 16 * j), b = vld1q_s8(x + kPairBytes * g + 16 * j);
            sums[j] = P::fma(P::to_float(vmmlaq_s32(P::izero(), a, b)), scale, sums[j]);
        }
    }
    transpose4(sums, dots);
}

// Weight rows i and, if `num_rows` is 2, i + 1 against all activation rows.
template <Format format>
inline void dot_two(const TwoRows& w, int32_t num_rows, const ActivationView& x, const PackedPairs& pairs, float* out,
                    size_t out_stride) {
    const size_t groups = static_cast<size_t>(w.groups);
    int32_t t = 0;
    for (; t + 2 <= x.num_rows; t += 2) {
        F dots[4];
        const size_t at = t / 2 * groups;
        dot_pair(w, pairs.codes + at * kPairBytes, pairs.scales + at * 2, dots);
        for (int i = 0; i < 2 * num_rows; ++i) {
            const int32_t token = t + i % 2;
            if constexpr (format == Format::q4) {
                dots[i] = P::add(dots[i], dot_minimums(w.m[i / 2], x.sums + token * x.groups_stride, w.groups));
            }
            out[token * out_stride + i / 2] = P::sum(dots[i]);
        }
    }
    for (int32_t r = 0; r < num_rows && t < x.num_rows; ++r) {
        dot_tile<format, 1>(w.row[r], w.groups, w.d[r], w.m[r], x, t, out + r, out_stride);
    }
}

// At least two activation rows.
template <Format format>
void dot_in_pairs(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                  float* out, size_t out_stride) {
    const int32_t groups = rows.cols_padded / kGroup;
    const size_t size = static_cast<size_t>(groups), num_pairs = static_cast<size_t>(x.num_rows / 2);
    const size_t codes_bytes = (num_pairs + 1) * size * kPairBytes;
    uint8_t* scratch = static_cast<uint8_t*>(kernel_scratch(codes_bytes + sizeof(float) * size * (2 * num_pairs + 4)));
    int8_t* codes = reinterpret_cast<int8_t*>(scratch);
    float* floats = reinterpret_cast<float*>(scratch + codes_bytes);
    const PackedPairs pairs = {codes + size * kPairBytes, floats + 4 * size};
    pack_pairs(x, groups, pairs);
    TwoRows w = {{}, codes, {floats, floats + size}, {floats + 2 * size, floats + 3 * size}, groups};
    const int32_t row_bytes = groups * (format == Format::q4 ? 20 : 34), rows_ahead = 8192 / row_bytes + 1;
    for (int32_t i = 0; i < n; i += 2) {
        for (int32_t r = 0; r < 2; ++r) {
            // the last of an odd number is its own partner
            w.row[r] = row_at(rows, index, first, i + r < n ? i + r : i);
            if (i + r + rows_ahead < n) prefetch_row(row_at(rows, index, first, i + r + rows_ahead), row_bytes);
        }
        unpack_two<format>(w);
        dot_two<format>(w, n - i < 2 ? 1 : 2, x, pairs, out + i, out_stride);
    }
}

}  // namespace
}  // namespace glass
