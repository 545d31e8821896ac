#include "rows.h"

#include <bit>
#include <cstring>
#include <stdexcept>

namespace glass {
namespace {

[[noreturn]] void refuse(const Tensor& tensor, const std::string& problem) {
    throw std::runtime_error("weight image: tensor '" + tensor.entry.name + "' " + problem);
}

Format rows_format(const Tensor& tensor) {
    if (tensor.entry.kind == "rows_q4") return Format::q4;
    if (tensor.entry.kind == "rows_q8") return Format::q8;
    if (tensor.entry.kind == "rows_bf16") return Format::bf16;
    refuse(tensor, "is of kind " + tensor.entry.kind + ", expected packed rows");
}

uint16_t load_u16(const uint8_t* bytes) {
    uint16_t value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

float from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    const uint32_t wide = exponent == 0x1f ? 0xff : exponent + 112;
    return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

void decode_q4(const uint8_t* row, int32_t cols_padded, int32_t cols, float* out) {
    const uint8_t* scales = row + cols_padded / 2;
    for (int32_t i = 0; i < cols; ++i) {
        const int32_t group = i / kGroup;
        const uint8_t pair = row[group / 2 * kGroup + i % kGroup];
        const int32_t code = group % 2 == 0 ? pair & 0x0f : pair >> 4;
        const float d = from_half(load_u16(scales + 4 * group)), m = from_half(load_u16(scales + 4 * group + 2));
        out[i] = d * static_cast<float>(code) + m;
    }
}

void decode_q8(const uint8_t* row, int32_t cols_padded, int32_t cols, float* out) {
    const uint8_t* scales = row + cols_padded;
    for (int32_t i = 0; i < cols; ++i) {
        out[i] = from_half(load_u16(scales + i / kGroup * 2)) * static_cast<float>(static_cast<int32_t>(row[i]) - 128);
    }
}

void decode_bf16(const uint8_t* row, int32_t cols, float* out) {
    for (int32_t i = 0; i < cols; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(load_u16(row + 2 * i)) << 16);
}

}  // namespace

size_t code_bytes(Format format, int32_t cols_padded) {
    const auto cols = static_cast<size_t>(cols_padded);
    if (format == Format::q4) return cols / 2;
    return format == Format::q8 ? cols : 2 * cols;
}

size_t row_bytes(Format format, int32_t cols_padded) {
    const auto groups = static_cast<size_t>(cols_padded / kGroup);
    const size_t scales = format == Format::q4 ? 4 * groups : (format == Format::q8 ? 2 * groups : 0);
    return (code_bytes(format, cols_padded) + scales + 7) / 8 * 8;
}

RowsView rows_view(const Tensor& tensor, int32_t rows, int32_t cols) {
    const Format format = rows_format(tensor);
    const TensorEntry& entry = tensor.entry;
    if (entry.rows != rows || entry.cols != cols || entry.padded_cols != padded(cols)) {
        refuse(tensor, "has " + std::to_string(entry.rows) + " rows of " + std::to_string(entry.cols) + " (padded " +
                       std::to_string(entry.padded_cols) + "), the model asks for " + std::to_string(rows) + " of " +
                       std::to_string(cols));
    }
    const auto cols_padded = static_cast<int32_t>(entry.padded_cols);
    if (static_cast<size_t>(entry.row_bytes) < row_bytes(format, cols_padded)) refuse(tensor, "has too short rows");
    return RowsView{tensor.data, static_cast<size_t>(entry.row_bytes), cols_padded, format};
}

const float* float_values(const Tensor& tensor, int32_t count) {
    if (tensor.entry.kind != "f32") refuse(tensor, "is of kind " + tensor.entry.kind + ", expected f32");
    if (tensor.entry.num_bytes != sizeof(float) * static_cast<size_t>(count)) {
        refuse(tensor, "has " + std::to_string(tensor.entry.num_bytes) + " bytes, expected " + std::to_string(count) +
                       " float32 values");
    }
    return reinterpret_cast<const float*>(tensor.data);
}

void decode_row(const RowsView& rows, size_t index, int32_t cols, float* out) {
    const uint8_t* row = rows.base + index * rows.stride;
    if (rows.format == Format::q4) {
        decode_q4(row, rows.cols_padded, cols, out);
    } else if (rows.format == Format::q8) {
        decode_q8(row, rows.cols_padded, cols, out);
    } else {
        decode_bf16(row, cols, out);
    }
}

}  // namespace glass
