// AVX-512 down projection over neuron-major columns. Four neurons of a group are interleaved byte by byte so that one
// VNNI instruction adds 4 neurons x 16 outputs; z is a 15-bit integer, applied as two signed bytes, high*128 + low, or
// one byte where the view asks for no more. Included by kernels_avx512_vnni.cpp and amx_down.h only.
#pragma once

#include "avx512_columns.h"

namespace glass {
namespace {

// z of one row over one group: 8 quads of neurons, 4 signed bytes each.
struct Z512 {
    int32_t high[8];
    int32_t low[8];
    float scale;
    int32_t sum;  // of the whole codes
    int32_t row;
    int32_t unused;
};

// False if all z are 0. Same rounding as quantize_down.
inline bool quantize_z(const float* z, int32_t n, int32_t row, int32_t steps, Z512& out) {
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(n < 16 ? n : 16), z);
    const __m512 b = n > 16 ? _mm512_maskz_loadu_ps(first_lanes(n - 16), z + 16) : _mm512_setzero_ps();
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    if (largest < kTiniest) return false;
    const __m512 inverse = _mm512_set1_ps(static_cast<float>(steps) / largest);
    const __m512i codes_a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
    const __m512i codes_b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    // a number of one byte has no high part
    const __m512i half = _mm512_set1_epi32(64);
    const __mmask16 split = steps > 127 ? 0xffff : 0;
    const __m512i high_a = _mm512_maskz_srai_epi32(split, _mm512_add_epi32(codes_a, half), 7);
    const __m512i high_b = _mm512_maskz_srai_epi32(split, _mm512_add_epi32(codes_b, half), 7);
    const __m512i low_a = _mm512_sub_epi32(codes_a, _mm512_slli_epi32(high_a, 7));
    const __m512i low_b = _mm512_sub_epi32(codes_b, _mm512_slli_epi32(high_b, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high), _mm512_cvtepi32_epi8(high_a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high + 4), _mm512_cvtepi32_epi8(high_b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low), _mm512_cvtepi32_epi8(low_a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low + 4), _mm512_cvtepi32_epi8(low_b));
    out.sum = _mm512_reduce_add_epi32(_mm512_add_epi32(codes_a, codes_b));
    out.scale = largest / static_cast<float>(steps);
    out.row = row;
    return true;
}

// Calls walk(group, active) for the groups of index[0, n), in order, in which some row has a z that is not 0. Their z, of
// `active` rows, are the first of `codes`, which has room for all rows.
template <typename Walk>
inline void for_groups(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                       int32_t num_rows, Z512* codes, const Walk& walk) {
    const int32_t steps = z_steps(down);
    Group512 group;
    if (n > 0) prefetch_first(down, index, n);
    for (int32_t i = 0, count = 0; i < n; i += count) {
        count = same_group(index + i, n - i);
        int32_t active = 0;
        for (int32_t t = 0; t < num_rows; ++t) active += quantize_z(z + t * z_stride + i, count, t, steps, codes[active]);
        if (active == 0) continue;
        gather_group(down, index + i, count, n - i, group);
        walk(group, active);
    }
}

// Outputs go in blocks of 16*V: V = 8 (128 outputs, two q4 chunks) or V = 4 (one chunk of either format).
template <Format F, int V>
inline constexpr int32_t kBlockBytes = F == Format::q4 ? 8 * V : 16 * V;

// The bytes of a column's block with dwords transposed (dword 4L+j = bytes 16j+4L..): interleave4 puts them in order.
template <Format F, int V>
inline __m512i load_column(const uint8_t* column) {
    if constexpr (kBlockBytes<F, V> == 64) {
        const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(column));
    }
    const __m512i order = _mm512_set_epi32(0, 0, 7, 3, 0, 0, 6, 2, 0, 0, 5, 1, 0, 0, 4, 0);
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column));
    return _mm512_permutexvar_epi32(order, _mm512_castsi256_si512(bytes));
}

// out[j] dword e = byte 16j + e of 4 columns; N = 2 leaves out the upper 32 bytes.
template <int N>
inline void interleave4(const __m512i v[4], __m512i out[N]) {
    const __m512i a = _mm512_unpacklo_epi8(v[0], v[1]), b = _mm512_unpacklo_epi8(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
    if constexpr (N == 4) {
        const __m512i c = _mm512_unpackhi_epi8(v[0], v[1]), d = _mm512_unpackhi_epi8(v[2], v[3]);
        out[2] = _mm512_unpacklo_epi16(c, d);
        out[3] = _mm512_unpackhi_epi16(c, d);
    }
}

// out[v] dword e = the codes of a quad of neurons for output 16v + e of the block that starts at byte `at`.
template <Format F, int V>
inline void load_quad(const Group512& group, int32_t quad, int32_t at, __m512i out[V]) {
    constexpr int N = kBlockBytes<F, V> / 16;
    __m512i columns[4], bytes[N];
    for (int i = 0; i < 4; ++i) {
        columns[i] = load_column<F, V>(group.columns[4 * quad + i] + at);
        prefetch_line(group.ahead[4 * quad + i] + at);
        prefetch_line(line_ahead(group, 4 * quad + i, at));
    }
    interleave4<N>(columns, bytes);
    for (int j = 0; j < N; ++j) {
        if constexpr (F == Format::q8) {
            out[j] = bytes[j];
        } else {
            // of each chunk of 64 outputs, the low nibbles are the first 32
            out[j / 2 * 4 + j % 2] = _mm512_and_si512(bytes[j], _mm512_set1_epi8(15));
            out[j / 2 * 4 + j % 2 + 2] = _mm512_and_si512(_mm512_srli_epi32(bytes[j], 4), _mm512_set1_epi8(15));
        }
    }
}

// Sums of a block of outputs over the neurons of a group: high*128 + low.
template <int V>
struct DownSums {
    __m512i high[V];
    __m512i low[V];
};

template <Format F, int V>
inline void start_sums(const Z512& z, DownSums<V>& sums) {
    for (int v = 0; v < V; ++v) {
        sums.high[v] = _mm512_setzero_si512();
        // codes are stored + 128
        sums.low[v] = F == Format::q8 ? _mm512_set1_epi32(-128 * z.sum) : _mm512_setzero_si512();
    }
}

// TwoBytes: z may have high parts.
template <int V, bool TwoBytes>
inline void add_quad(const __m512i codes[V], const Z512& z, int32_t quad, DownSums<V>& sums) {
    const __m512i high = _mm512_set1_epi32(z.high[quad]), low = _mm512_set1_epi32(z.low[quad]);
    for (int v = 0; v < V; ++v) {
        if constexpr (TwoBytes) sums.high[v] = _mm512_dpbusd_epi32(sums.high[v], codes[v], high);
        sums.low[v] = _mm512_dpbusd_epi32(sums.low[v], codes[v], low);
    }
}

inline __m512 load_half16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

inline __m512 load_scale16(const Group512& group, int32_t at) {
    if (group.units == nullptr) return load_half16(group.scales + 2 * at);
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group.scales + at));
    return _mm512_mul_ps(load_half16(group.units + at), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
}

// The scales of a block as floats.
template <Format F, int V>
struct DownScales {
    __m512 d[V];
    __m512 m[V];
};

template <Format F, int V>
inline void load_scales(const Group512& group, int32_t h, DownScales<F, V>& scales) {
    for (int v = 0; v < V; ++v) {
        scales.d[v] = load_scale16(group, h + 16 * v);
        if constexpr (F == Format::q4) scales.m[v] = load_scale16(group, group.outputs + h + 16 * v);
    }
}

// y[0 .. 16*V) += d * sums + m * (sum of z).
template <Format F, int V, bool TwoBytes = true>
inline void add_to_outputs(const DownSums<V>& sums, const Z512& z, const __m512* d, const __m512* m, float* y) {
    const __m512 scale = _mm512_set1_ps(z.scale), sum = _mm512_set1_ps(z.scale * static_cast<float>(z.sum));
    for (int v = 0; v < V; ++v) {
        __m512i dots = sums.low[v];
        if constexpr (TwoBytes) dots = _mm512_add_epi32(_mm512_slli_epi32(sums.high[v], 7), dots);
        __m512 result = _mm512_loadu_ps(y + 16 * v);
        result = _mm512_fmadd_ps(d[v], _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale), result);
        if constexpr (F == Format::q4) result = _mm512_fmadd_ps(m[v], sum, result);
        _mm512_storeu_ps(y + 16 * v, result);
    }
}

// One activation row: codes go from memory to the sums.
template <Format F, int V, bool TwoBytes>
inline void down_one(const Group512& group, int32_t h, const Z512& z, float* y) {
    DownSums<V> sums;
    start_sums<F>(z, sums);
    for (int32_t quad = 0; quad < group.quads; ++quad) {
        __m512i codes[V];
        load_quad<F, V>(group, quad, h / (F == Format::q4 ? 2 : 1), codes);
        add_quad<V, TwoBytes>(codes, z, quad, sums);
    }
    DownScales<F, V> scales;
    load_scales(group, h, scales);
    add_to_outputs<F, V, TwoBytes>(sums, z, scales.d, scales.m, y + h);
}

// Unpacked codes, V vectors a quad, of which four (64 outputs) are used: `from` .. from + 3.
template <int V>
struct DownCodes512 {
    const __m512i (*quads)[V];
    int from;
    int32_t num_quads;
};

// Sums of 64 outputs. Members with names, not arrays: GCC keeps two rows' arrays in memory.
struct DownSums64 {
    __m512i high0, high1, high2, high3, low0, low1, low2, low3;
};

template <Format F>
inline DownSums64 start_sums64(const Z512& z) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i low = F == Format::q8 ? _mm512_set1_epi32(-128 * z.sum) : none;
    return {none, none, none, none, low, low, low, low};
}

inline void add_quad64(const __m512i* codes, const Z512& z, int32_t quad, DownSums64& sums) {
    const __m512i high = _mm512_set1_epi32(z.high[quad]), low = _mm512_set1_epi32(z.low[quad]);
    sums.high0 = _mm512_dpbusd_epi32(sums.high0, codes[0], high);
    sums.high1 = _mm512_dpbusd_epi32(sums.high1, codes[1], high);
    sums.high2 = _mm512_dpbusd_epi32(sums.high2, codes[2], high);
    sums.high3 = _mm512_dpbusd_epi32(sums.high3, codes[3], high);
    sums.low0 = _mm512_dpbusd_epi32(sums.low0, codes[0], low);
    sums.low1 = _mm512_dpbusd_epi32(sums.low1, codes[1], low);
    sums.low2 = _mm512_dpbusd_epi32(sums.low2, codes[2], low);
    sums.low3 = _mm512_dpbusd_epi32(sums.low3, codes[3], low);
}

template <Format F>
inline void add_to_outputs64(const DownSums64& s, const Z512& z, const __m512* d, const __m512* m, float* y) {
    const DownSums<4> sums = {{s.high0, s.high1, s.high2, s.high3}, {s.low0, s.low1, s.low2, s.low3}};
    add_to_outputs<F, 4>(sums, z, d, m, y);
}

// Two activation rows.
template <Format F, int V>
[[gnu::noinline]] void down_two(DownCodes512<V> codes, const Z512* z, const __m512* d, const __m512* m, float* y,
                                size_t y_stride) {
    DownSums64 first = start_sums64<F>(z[0]), second = start_sums64<F>(z[1]);
#pragma GCC unroll 1
    for (int32_t quad = 0; quad < codes.num_quads; ++quad) {
        add_quad64(codes.quads[quad] + codes.from, z[0], quad, first);
        add_quad64(codes.quads[quad] + codes.from, z[1], quad, second);
    }
    add_to_outputs64<F>(first, z[0], d, m, y + z[0].row * y_stride);
    add_to_outputs64<F>(second, z[1], d, m, y + z[1].row * y_stride);
}

template <Format F, int V>
[[gnu::noinline]] void down_last(DownCodes512<V> codes, const Z512& z, const __m512* d, const __m512* m, float* y,
                                 size_t y_stride) {
    DownSums64 sums = start_sums64<F>(z);
    for (int32_t quad = 0; quad < codes.num_quads; ++quad) add_quad64(codes.quads[quad] + codes.from, z, quad, sums);
    add_to_outputs64<F>(sums, z, d, m, y + z.row * y_stride);
}

// Several activation rows: codes are unpacked once for all of them.
template <Format F, int V>
inline void down_many(const Group512& group, int32_t h, const Z512* z, int32_t active, float* y, size_t y_stride) {
    __m512i codes[8][V];
    for (int32_t quad = 0; quad < group.quads; ++quad) {
        load_quad<F, V>(group, quad, h / (F == Format::q4 ? 2 : 1), codes[quad]);
    }
    DownScales<F, V> scales;
    load_scales(group, h, scales);
    for (int from = 0; from < V; from += 4) {
        float* y_at = y + h + 16 * from;
        const DownCodes512<V> part = {codes, from, group.quads};
        int32_t t = 0;
        for (; t + 2 <= active; t += 2) down_two<F, V>(part, z + t, scales.d + from, scales.m + from, y_at, y_stride);
        if (t < active) down_last<F, V>(part, z[t], scales.d + from, scales.m + from, y_at, y_stride);
    }
}

// Without it the scales, one short piece per block, stall every block.
template <Format F, int V>
inline void prefetch_scales(const Group512& group, int32_t h) {
    const int32_t scale_bytes = group.units == nullptr ? 2 : 1;
    const uint8_t* d = group.scales_ahead + h * scale_bytes;
    for (int32_t at = 0; at < 16 * V * scale_bytes; at += 64) {
        prefetch_line(d + at);
        if constexpr (F == Format::q4) prefetch_line(d + group.outputs * scale_bytes + at);
    }
}

template <Format F, int V>
inline void down_block(const Group512& group, int32_t h, const Z512* z, int32_t active, float* y, size_t y_stride) {
    prefetch_scales<F, V>(group, h);
    if (active == 1 && group.units != nullptr) {
        down_one<F, V, false>(group, h, z[0], y + z[0].row * y_stride);
    } else if (active == 1) {
        down_one<F, V, true>(group, h, z[0], y + z[0].row * y_stride);
    } else {
        down_many<F, V>(group, h, z, active, y, y_stride);
    }
}

template <Format F>
inline void down_group512(const Group512& group, int32_t hidden_padded, const Z512* z, int32_t active, float* y,
                          size_t y_stride) {
    constexpr int V = F == Format::q4 ? 8 : 4;
    int32_t h = 0;
    for (; h + 16 * V <= hidden_padded; h += 16 * V) down_block<F, V>(group, h, z, active, y, y_stride);
    if (h < hidden_padded) down_block<F, 4>(group, h, z, active, y, y_stride);
}

template <Format F>
void accumulate_quantized(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                          int32_t num_rows, float* y, size_t y_stride) {
    Z512* codes = static_cast<Z512*>(kernel_scratch(num_rows * sizeof(Z512)));
    for_groups(down, index, n, z, z_stride, num_rows, codes, [&](const Group512& group, int32_t active) {
        down_group512<F>(group, down.hidden_padded, codes, active, y, y_stride);
    });
}

}  // namespace
}  // namespace glass
