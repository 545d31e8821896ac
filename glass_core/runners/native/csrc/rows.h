// Packed rows of the weight image: their sizes, checked views on them, and exact decoding one row at a time.
//
// A row is codes, then scales (see the image's description in image.py). Decoding here is for what is read a row at a
// time: embeddings and neuron norms. Products go through the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "image.h"
#include "kernels/kernels.h"

namespace glass {

constexpr int32_t kGroup = 32;     // values that share a scale
constexpr int32_t kPadding = 64;   // input dimensions are padded to a multiple of this

constexpr int32_t round_up(int32_t value, int32_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Bytes of a row's codes, and of codes plus scales.
size_t code_bytes(Format format, int32_t cols_padded);
size_t row_bytes(Format format, int32_t cols_padded);

// Views of a rows_* tensor of exactly this shape. Throws std::runtime_error when the tensor is something else.
RowsView rows_view(const Tensor& tensor, int32_t rows, int32_t cols);
// The float32 values of an f32 tensor of exactly this many values.
const float* float_values(const Tensor& tensor, int32_t count);

// The first `cols` values of row `index`.
void decode_row(const RowsView& rows, size_t index, int32_t cols, float* out);

}  // namespace glass
