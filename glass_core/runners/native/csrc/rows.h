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

// Packed dimensions are padded to whole chunks.
constexpr int32_t padded(int32_t size) { return (size + kChunk - 1) / kChunk * kChunk; }

// Bytes of a row's codes, and of the whole row: codes and scales, padded to a multiple of 8.
size_t code_bytes(Format format, int32_t cols_padded);
size_t row_bytes(Format format, int32_t cols_padded);

// Views of a rows_* tensor of exactly this shape. Throws std::runtime_error when the tensor is something else.
RowsView rows_view(const Tensor& tensor, int32_t rows, int32_t cols);
// The float32 values of an f32 tensor of exactly this many values.
const float* float_values(const Tensor& tensor, int32_t count);

// The first `cols` values of row `index`.
void decode_row(const RowsView& rows, size_t index, int32_t cols, float* out);

}  // namespace glass
