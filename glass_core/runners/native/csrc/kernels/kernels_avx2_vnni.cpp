// AVX2 kernels with AVX-VNNI.
#include "avx2_attention.h"
#include "avx2_primitives.h"

#include "narrow_body.h"
#include "select_body.h"
#include "tables.h"

#if !defined(__AVXVNNI__)
#error "kernels_avx2_vnni.cpp must be compiled with -mavxvnni"
#endif

namespace glass {

const Kernels kAvx2VnniKernels = {"avx2_vnni", quantize, dot_rows, accumulate_down, attend_span,
                                  drop_below, clear_unmarked, gather_marked};

}  // namespace glass
