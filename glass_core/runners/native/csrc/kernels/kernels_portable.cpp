// Plain C++ kernels: the reference that every other ISA is tested against, and the fallback everywhere.
#include "common.h"
#include "portable_attention.h"
#include "select_body.h"
#include "tables.h"

namespace glass {
namespace {

void quantize_group(const float* x, int32_t n, int8_t* codes, float& scale, float& sum) {
    float largest = 0.0f;
    for (int32_t i = 0; i < n; ++i) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    const bool none = largest < kTiniest;
    const float inverse = none ? 0.0f : 127.0f / largest;
    int32_t total = 0;
    for (int32_t i = 0; i < kGroup; ++i) {
        const int32_t code = i < n ? round_even(x[i] * inverse) : 0;
        codes[i] = static_cast<int8_t>(code);
        total += code;
    }
    scale = none ? 0.0f : largest / 127.0f;
    sum = scale * static_cast<float>(total);
}

void quantize(const float* x, int32_t cols, int32_t cols_padded, int8_t* codes, float* scales, float* sums) {
    for (int32_t g = 0; g < cols_padded / kGroup; ++g) {
        const int32_t left = cols - g * kGroup;
        const int32_t n = left < 0 ? 0 : (left < kGroup ? left : kGroup);
        quantize_group(x + g * kGroup, n, codes + g * kGroup, scales[g], sums[g]);
    }
}

// The code of value k in a packed q4 row.
inline int32_t nibble(const uint8_t* codes, int32_t k) {
    const uint8_t byte = codes[k / kChunk * 32 + k % 32];
    return k % kChunk < 32 ? byte & 15 : byte >> 4;
}

float dot_q4(const uint8_t* row, int32_t cols_padded, const int8_t* x, const float* x_scales, const float* x_sums) {
    const uint8_t* scales = row + cols_padded / 2;
    float result = 0.0f;
    for (int32_t g = 0; g < cols_padded / kGroup; ++g) {
        int32_t sum = 0;
        for (int32_t k = g * kGroup; k < (g + 1) * kGroup; ++k) sum += nibble(row, k) * x[k];
        const float d = half_to_float(load_u16(scales + 4 * g));
        const float m = half_to_float(load_u16(scales + 4 * g + 2));
        result += d * x_scales[g] * static_cast<float>(sum) + m * x_sums[g];
    }
    return result;
}

float dot_q8(const uint8_t* row, int32_t cols_padded, const int8_t* x, const float* x_scales) {
    const uint8_t* scales = row + cols_padded;
    float result = 0.0f;
    for (int32_t g = 0; g < cols_padded / kGroup; ++g) {
        int32_t sum = 0;
        for (int32_t k = g * kGroup; k < (g + 1) * kGroup; ++k) sum += (row[k] - 128) * x[k];
        result += half_to_float(load_u16(scales + 2 * g)) * x_scales[g] * static_cast<float>(sum);
    }
    return result;
}

float dot_bf16_row(const uint8_t* row, int32_t cols_padded, const float* x) {
    float result = 0.0f;
    for (int32_t k = 0; k < cols_padded; ++k) result += bf16_to_float(load_u16(row + 2 * k)) * x[k];
    return result;
}

float dot_row(const RowsView& rows, const uint8_t* row, const ActivationView& x, int32_t t) {
    const int8_t* codes = x.codes + t * x.codes_stride;
    const float* scales = x.scales + t * x.groups_stride;
    switch (rows.format) {
        case Format::q4:
            return dot_q4(row, rows.cols_padded, codes, scales, x.sums + t * x.groups_stride);
        case Format::q8:
            return dot_q8(row, rows.cols_padded, codes, scales);
        default:
            return dot_bf16_row(row, rows.cols_padded, x.values + t * x.values_stride);
    }
}

void dot_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
              float* out, size_t out_stride) {
    for (int32_t i = 0; i < n; ++i) {
        const uint8_t* row = row_at(rows, index, first, i);
        for (int32_t t = 0; t < x.num_rows; ++t) out[t * out_stride + i] = dot_row(rows, row, x, t);
    }
}

inline int32_t down_code(const DownView& down, int32_t neuron, int32_t h) {
    const uint8_t* codes = down.base + neuron * down.stride;
    return down.format == Format::q4 ? nibble(codes, h) : codes[h] - 128;
}

// A group's scale at `at`: d of the outputs, then m.
inline float down_scale(const DownView& down, int32_t group, int32_t at) {
    const uint8_t* scales = down.scales + static_cast<size_t>(group) * group_scale_bytes(down);
    if (down.units == nullptr) return half_to_float(load_u16(scales + 2 * at));
    return half_to_float(down.units[at]) * static_cast<float>(static_cast<int8_t>(scales[at]));
}

// One group of neurons, one row: y[h] += d[h] * sum(z*code) + m[h] * sum(z).
void down_group(const DownView& down, const int32_t* index, int32_t n, const DownCodes& z, float* y) {
    const int32_t group = index[0] / kGroup, hidden = down.hidden_padded;
    for (int32_t h = 0; h < hidden; ++h) {
        int32_t sum = 0;
        for (int32_t i = 0; i < n; ++i) sum += z.codes[i] * down_code(down, index[i], h);
        y[h] += down_scale(down, group, h) * (z.scale * static_cast<float>(sum));
        if (down.format == Format::q4) y[h] += down_scale(down, group, hidden + h) * (z.scale * static_cast<float>(z.sum));
    }
}

void down_bf16(const DownView& down, int32_t neuron, float z, float* y) {
    const uint8_t* column = down.base + neuron * down.stride;
    for (int32_t h = 0; h < down.hidden_padded; ++h) y[h] += z * bf16_to_float(load_u16(column + 2 * h));
}

void accumulate_down(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                     int32_t num_rows, float* y, size_t y_stride) {
    for (int32_t i = 0, count = 0; i < n; i += count) {
        count = same_group(index + i, n - i);
        for (int32_t t = 0; t < num_rows; ++t) {
            const float* z_row = z + t * z_stride + i;
            float* y_row = y + t * y_stride;
            if (down.format == Format::bf16) {
                for (int32_t j = 0; j < count; ++j) down_bf16(down, index[i + j], z_row[j], y_row);
                continue;
            }
            DownCodes codes;
            quantize_down(z_row, count, z_steps(down), codes);
            down_group(down, index + i, count, codes, y_row);
        }
    }
}

}  // namespace

const Kernels kPortableKernels = {"portable", quantize, dot_rows, accumulate_down, attend_span,
                                  drop_below, clear_unmarked, gather_marked};

}  // namespace glass
