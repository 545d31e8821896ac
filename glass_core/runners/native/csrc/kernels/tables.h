// The kernel tables: one per file kernels_<isa>.cpp. The build defines GLASS_HAVE_<ISA> where it compiles that file.
#pragma once

#include "kernels.h"

namespace glass {

extern const Kernels kPortableKernels;
extern const Kernels kAmxInt8Kernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx2VnniKernels;
extern const Kernels kNeonDotprodKernels;
extern const Kernels kNeonI8mmKernels;

}  // namespace glass
