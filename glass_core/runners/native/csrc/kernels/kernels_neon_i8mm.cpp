// ARM NEON kernels with the int8 matrix extension (ARMv8.6-A, optional from 8.2): several activation rows share it, a
// single one uses the dot product extension. Every result has the bits of the table `neon_dotprod`.
#include "neon_attention.h"
#include "neon_i8mm_dot.h"
#include "select_body.h"
#include "tables.h"

namespace glass {
namespace {

void dot_rows_i8mm(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                   float* out, size_t out_stride) {
    if (x.num_rows < 2 || rows.format == Format::bf16) {
        dot_rows(rows, index, first, n, x, out, out_stride);
    } else if (rows.format == Format::q4) {
        dot_in_pairs<Format::q4>(rows, index, first, n, x, out, out_stride);
    } else {
        dot_in_pairs<Format::q8>(rows, index, first, n, x, out, out_stride);
    }
}

}  // namespace

const Kernels kNeonI8mmKernels = {"neon_i8mm", quantize, dot_rows_i8mm, accumulate_down, attend_span,
                                  drop_below, clear_unmarked, gather_marked};

}  // namespace glass
