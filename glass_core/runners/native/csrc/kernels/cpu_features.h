// Why this processor or operating system cannot run an instruction set's kernels; nullptr when it can.
#pragma once

namespace glass {

#if defined(__x86_64__)
const char* avx2_problem();
const char* avx2_vnni_problem();
const char* avx512_vnni_problem();
const char* amx_int8_problem();  // asks the operating system for the tile registers, once for the process
#elif defined(__aarch64__)
const char* neon_dotprod_problem();
const char* neon_i8mm_problem();
#endif

}  // namespace glass
