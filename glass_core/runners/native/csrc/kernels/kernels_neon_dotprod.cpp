// ARM NEON kernels with the dot product extension (ARMv8.2-A).
#include "neon_primitives.h"

#include "narrow_body.h"
#include "neon_attention.h"
#include "select_body.h"
#include "tables.h"

namespace glass {

const Kernels kNeonDotprodKernels = {"neon_dotprod", quantize, dot_rows, accumulate_down, attend_span,
                                     drop_below, clear_unmarked, gather_marked};

}  // namespace glass
