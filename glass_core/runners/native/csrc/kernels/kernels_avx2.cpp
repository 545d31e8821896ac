// AVX2 kernels (AVX2, FMA, F16C).
#include "avx2_attention.h"
#include "avx2_primitives.h"

#include "narrow_body.h"
#include "select_body.h"
#include "tables.h"

namespace glass {

const Kernels kAvx2Kernels = {"avx2", quantize, dot_rows, accumulate_down, attend_span,
                              drop_below, clear_unmarked, gather_marked};

}  // namespace glass
