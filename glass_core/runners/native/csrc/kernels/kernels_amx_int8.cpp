// AVX-512 VNNI kernels with AMX-int8 tiles where several activation rows share the weights. Every result has the bits
// of the table `avx512_vnni`: the tiles compute integers only, the floats follow the same order.
#include "amx_dot.h"
#include "amx_down.h"
#include "avx512_select.h"
#include "tables.h"

namespace glass {
namespace {

// Below this most lanes of a tile would be empty, and streaming the weights is all there is to do.
constexpr int32_t kFewestRows = 4;

void dot_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
              float* out, size_t out_stride) {
    if (x.num_rows < kFewestRows || rows.format == Format::bf16) {
        kAvx512VnniKernels.dot_rows(rows, index, first, n, x, out, out_stride);
    } else if (rows.format == Format::q4) {
        dot_rows_tiles<Format::q4>(rows, index, first, n, x, out, out_stride);
    } else {
        dot_rows_tiles<Format::q8>(rows, index, first, n, x, out, out_stride);
    }
}

void accumulate_down(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                     int32_t num_rows, float* y, size_t y_stride) {
    if (num_rows < kFewestRows || down.format == Format::bf16) {
        kAvx512VnniKernels.accumulate_down(down, index, n, z, z_stride, num_rows, y, y_stride);
    } else if (down.format == Format::q4) {
        accumulate_down_tiles<Format::q4>(down, index, n, z, z_stride, num_rows, y, y_stride);
    } else {
        accumulate_down_tiles<Format::q8>(down, index, n, z, z_stride, num_rows, y, y_stride);
    }
}

void quantize(const float* x, int32_t cols, int32_t cols_padded, int8_t* codes, float* scales, float* sums) {
    kAvx512VnniKernels.quantize(x, cols, cols_padded, codes, scales, sums);
}

void attend_span(const KeySpan& span, const float* q, const KeyRange* ranges, int32_t num_queries, float* out,
                 SoftmaxState* states) {
    kAvx512VnniKernels.attend_span(span, q, ranges, num_queries, out, states);
}

}  // namespace

const Kernels kAmxInt8Kernels = {"amx_int8", quantize, dot_rows, accumulate_down, attend_span,
                                 drop_below, clear_unmarked, gather_marked};

}  // namespace glass
