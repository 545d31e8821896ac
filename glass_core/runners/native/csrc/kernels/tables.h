// The kernel tables of this build. The build defines GLASS_HAVE_AVX512 / GLASS_HAVE_AVX2 / GLASS_HAVE_NEON for
// find_kernels.cpp when it compiles the file that holds the table.
#pragma once

#include "kernels.h"

namespace glass {

extern const Kernels kPortableKernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx2VnniKernels;
extern const Kernels kNeonDotprodKernels;

}  // namespace glass
