// The kernels for 128- and 256-bit vectors, written once over the primitives of an instruction set. A kernel file
// defines `struct P` (see avx2_primitives.h, neon_primitives.h) before it includes this:
//
//   kLanes; F (floats), I (int32), Codes (32 signed or unsigned bytes), Pair (two neurons' codes for 16 outputs)
//   F zero(), set1(float), load(const float*), load_bf16(const uint8_t*), load_half(const void*),
//     load_int8(const uint8_t*), add(F, F), mul(F, F), fma(a, b, c) = a*b + c, to_float(I); store(float*, F); float sum(F)
//   I izero(), iset1(int32), iadd(I, I)
//   Codes load_x(const int8_t*), load_q8(const uint8_t*) (code - 128); unpack_q4(const uint8_t*, Codes& low, Codes& high)
//   I dot_q4(Codes w, Codes x), dot_q8(Codes w, Codes x): exact sums, spread over the lanes in any way
//   Pair pair(const uint8_t* a, const uint8_t* b, shift): 16 bytes of each, shifted right and masked if shift >= 0
//   void add_pair(I (&sums)[16 / kLanes], Pair, int16_t a, int16_t b): outputs in order
//
// Order of additions: lane-wise over the groups, ascending, then P::sum. It does not depend on the batch.
#pragma once

#include "common.h"

namespace glass {
namespace {

inline constexpr int kTileRows = 4;
inline constexpr int kLanes = P::kLanes;
using F = P::F;
using I = P::I;
using Codes = P::Codes;

inline float half_at(const uint8_t* p) { return P::half(load_u16(p)); }

// Scales of one packed row as floats: d[groups], m[groups] (zeros for q8).
template <Format format>
inline void load_scales(const uint8_t* row, int32_t groups, float* d, float* m) {
    const uint8_t* scales = row + groups * (format == Format::q4 ? 16 : 32);
    for (int32_t g = 0; g < groups; ++g) {
        d[g] = half_at(scales + (format == Format::q4 ? 4 : 2) * g);
        if constexpr (format == Format::q4) m[g] = half_at(scales + 4 * g + 2);
    }
}

// sum over groups of m * sums.
inline F dot_minimums(const float* m, const float* sums, int32_t groups) {
    F result = P::zero();
    int32_t g = 0;
    for (; g + kLanes <= groups; g += kLanes) result = P::fma(P::load(m + g), P::load(sums + g), result);
    alignas(32) float rest_m[kLanes] = {}, rest_sums[kLanes] = {};
    for (int32_t i = 0; g + i < groups; ++i) {
        rest_m[i] = m[g + i];
        rest_sums[i] = sums[g + i];
    }
    return P::fma(P::load(rest_m), P::load(rest_sums), result);
}

template <Format format, int T>
inline void dot_group(Codes w, int32_t g, const ActivationView& x, int32_t t0, float d, F (&sums)[T]) {
    for (int t = 0; t < T; ++t) {
        const Codes codes = P::load_x(x.codes + (t0 + t) * x.codes_stride + kGroup * g);
        const I dots = format == Format::q4 ? P::dot_q4(w, codes) : P::dot_q8(w, codes);
        const F scale = P::set1(d * x.scales[(t0 + t) * x.groups_stride + g]);
        sums[t] = P::fma(P::to_float(dots), scale, sums[t]);
    }
}

// One packed row against activation rows [t0, t0 + T).
template <Format format, int T>
inline void dot_tile(const uint8_t* row, int32_t groups, const float* d, const float* m, const ActivationView& x,
                     int32_t t0, float* out, size_t out_stride) {
    F sums[T];
    for (int t = 0; t < T; ++t) sums[t] = P::zero();
    for (int32_t g = 0; g < groups; g += 2) {
        Codes low, high;
        if constexpr (format == Format::q4) {
            P::unpack_q4(row + kGroup / 2 * g, low, high);
        } else {
            low = P::load_q8(row + kGroup * g);
            high = P::load_q8(row + kGroup * (g + 1));
        }
        dot_group<format, T>(low, g, x, t0, d[g], sums);
        dot_group<format, T>(high, g + 1, x, t0, d[g + 1], sums);
    }
    for (int t = 0; t < T; ++t) {
        if constexpr (format == Format::q4) {
            sums[t] = P::add(sums[t], dot_minimums(m, x.sums + (t0 + t) * x.groups_stride, groups));
        }
        out[(t0 + t) * out_stride] = P::sum(sums[t]);
    }
}

inline void prefetch_row(const uint8_t* row, int32_t bytes) {
    for (int32_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
}

template <Format format>
void dot_quantized(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                   float* out, size_t out_stride) {
    const int32_t groups = rows.cols_padded / kGroup, row_bytes = groups * (format == Format::q4 ? 20 : 34);
    const int32_t rows_ahead = 8192 / row_bytes + 1;
    float* d = static_cast<float*>(kernel_scratch(2 * sizeof(float) * static_cast<size_t>(groups)));
    float* m = d + groups;
    for (int32_t i = 0; i < n; ++i) {
        const uint8_t* row = row_at(rows, index, first, i);
        if (i + rows_ahead < n) prefetch_row(row_at(rows, index, first, i + rows_ahead), row_bytes);
        load_scales<format>(row, groups, d, m);
        int32_t t = 0;
        for (; t + kTileRows <= x.num_rows; t += kTileRows) {
            dot_tile<format, kTileRows>(row, groups, d, m, x, t, out + i, out_stride);
        }
        for (; t < x.num_rows; ++t) dot_tile<format, 1>(row, groups, d, m, x, t, out + i, out_stride);
    }
}

template <int T>
inline void dot_bf16_tile(const uint8_t* row, int32_t cols, const ActivationView& x, int32_t t0, float* out,
                          size_t out_stride) {
    F even[T], odd[T];
    for (int t = 0; t < T; ++t) even[t] = odd[t] = P::zero();
    for (int32_t k = 0; k < cols; k += 2 * kLanes) {
        const F a = P::load_bf16(row + 2 * k), b = P::load_bf16(row + 2 * (k + kLanes));
        for (int t = 0; t < T; ++t) {
            const float* values = x.values + (t0 + t) * x.values_stride + k;
            even[t] = P::fma(a, P::load(values), even[t]);
            odd[t] = P::fma(b, P::load(values + kLanes), odd[t]);
        }
    }
    for (int t = 0; t < T; ++t) out[(t0 + t) * out_stride] = P::sum(P::add(even[t], odd[t]));
}

void dot_bf16_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                   float* out, size_t out_stride) {
    for (int32_t i = 0; i < n; ++i) {
        const uint8_t* row = row_at(rows, index, first, i);
        int32_t t = 0;
        for (; t + kTileRows <= x.num_rows; t += kTileRows) {
            dot_bf16_tile<kTileRows>(row, rows.cols_padded, x, t, out + i, out_stride);
        }
        for (; t < x.num_rows; ++t) dot_bf16_tile<1>(row, rows.cols_padded, x, t, out + i, out_stride);
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
            return dot_bf16_rows(rows, index, first, n, x, out, out_stride);
    }
}

// 64 outputs of the neurons of one group, two neurons at a time.
struct DownPanel {
    P::Pair pairs[kGroup / 2][4];
    int32_t num_pairs;
};

template <Format format>
inline void fill_panel(const DownView& down, const int32_t* index, int32_t count, int32_t chunk, DownPanel& panel) {
    panel.num_pairs = (count + 1) / 2;
    for (int32_t p = 0; p < panel.num_pairs; ++p) {
        // a missing second neuron meets a z code of 0
        const size_t second = static_cast<size_t>(index[2 * p + 1 < count ? 2 * p + 1 : 2 * p]);
        const int32_t at = chunk * (format == Format::q4 ? 32 : 64);
        const uint8_t* a = down.base + static_cast<size_t>(index[2 * p]) * down.stride + at;
        const uint8_t* b = down.base + second * down.stride + at;
        for (int v = 0; v < 4; ++v) {
            panel.pairs[p][v] = format == Format::q4 ? P::pair(a + 16 * (v % 2), b + 16 * (v % 2), v / 2 * 4)
                                                     : P::pair(a + 16 * v, b + 16 * v, -1);
        }
    }
}

// One group's scales.
struct GroupScales {
    const uint8_t* scales;
    const uint16_t* units;

    F load(int32_t at) const {
        if (units == nullptr) return P::load_half(scales + 2 * at);
        return P::mul(P::load_half(units + at), P::load_int8(scales + at));
    }
};

// y[0..15] += d * z.scale * sums + m * z.scale * (sum of z codes), with the scales from d and m on.
template <Format format>
inline void add_outputs(I (&sums)[16 / kLanes], const DownCodes& z, const GroupScales& scales, int32_t d, int32_t m,
                        float* y) {
    const I correction = P::iset1(format == Format::q8 ? -128 * z.sum : 0);
    const F scale = P::set1(z.scale), total = P::set1(z.scale * static_cast<float>(z.sum));
    for (int i = 0; i < 16 / kLanes; ++i) {
        const F dots = P::mul(P::to_float(P::iadd(sums[i], correction)), scale);
        F result = P::fma(scales.load(d + kLanes * i), dots, P::load(y + kLanes * i));
        if constexpr (format == Format::q4) result = P::fma(scales.load(m + kLanes * i), total, result);
        P::store(y + kLanes * i, result);
    }
}

template <Format format>
inline void apply_panel(const DownPanel& panel, const DownCodes& z, const GroupScales& scales, int32_t d, int32_t m,
                        float* y) {
    for (int v = 0; v < 4; ++v) {
        I sums[16 / kLanes];
        for (I& sum : sums) sum = P::izero();
        for (int32_t p = 0; p < panel.num_pairs; ++p) P::add_pair(sums, panel.pairs[p][v], z.codes[2 * p], z.codes[2 * p + 1]);
        add_outputs<format>(sums, z, scales, d + 16 * v, m + 16 * v, y + 16 * v);
    }
}

template <Format format>
void accumulate_quantized(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                          int32_t num_rows, float* y, size_t y_stride) {
    DownCodes* codes = static_cast<DownCodes*>(kernel_scratch(static_cast<size_t>(num_rows) * sizeof(DownCodes)));
    for (int32_t i = 0, count = 0; i < n; i += count) {
        count = same_group(index + i, n - i);
        for (int32_t t = 0; t < num_rows; ++t) quantize_down(z + t * z_stride + i, count, z_steps(down), codes[t]);
        const GroupScales scales = {down.scales + static_cast<size_t>(index[i] / kGroup) * group_scale_bytes(down), down.units};
        DownPanel panel;
        for (int32_t chunk = 0; chunk < down.hidden_padded / kChunk; ++chunk) {
            fill_panel<format>(down, index + i, count, chunk, panel);
            const int32_t h = kChunk * chunk;
            for (int32_t t = 0; t < num_rows; ++t) {
                if (codes[t].scale == 0.0f) continue;
                apply_panel<format>(panel, codes[t], scales, h, down.hidden_padded + h, y + t * y_stride + h);
            }
        }
    }
}

void accumulate_bf16(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                     int32_t num_rows, float* y, size_t y_stride) {
    for (int32_t i = 0; i < n; ++i) {
        const uint8_t* column = down.base + static_cast<size_t>(index[i]) * down.stride;
        for (int32_t t = 0; t < num_rows; ++t) {
            const float value = z[t * z_stride + i];
            if (value == 0.0f) continue;
            const F factor = P::set1(value);
            float* row = y + t * y_stride;
            for (int32_t h = 0; h < down.hidden_padded; h += kLanes) {
                P::store(row + h, P::fma(factor, P::load_bf16(column + 2 * h), P::load(row + h)));
            }
        }
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

void quantize(const float* x, int32_t cols, int32_t cols_padded, int8_t* codes, float* scales, float* sums) {
    for (int32_t g = 0; g < cols_padded / kGroup; ++g) {
        const int32_t left = cols - g * kGroup;
        float values[kGroup] = {};
        for (int32_t i = 0; i < (left < kGroup ? left : kGroup); ++i) values[i] = x[g * kGroup + i];
        float largest = 0.0f;
        for (const float value : values) largest = __builtin_fabsf(value) > largest ? __builtin_fabsf(value) : largest;
        const bool none = largest < kTiniest;
        const float inverse = none ? 0.0f : 127.0f / largest;
        int32_t total = 0;
        for (int32_t i = 0; i < kGroup; ++i) {
            const int32_t code = round_even(values[i] * inverse);
            codes[g * kGroup + i] = static_cast<int8_t>(code);
            total += code;
        }
        scales[g] = none ? 0.0f : largest / 127.0f;
        sums[g] = scales[g] * static_cast<float>(total);
    }
}

}  // namespace
}  // namespace glass
