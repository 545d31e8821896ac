// In place of cpu_features.cpp in a build whose tile instructions are amx_tiles_model.h: AMX is there, in software.
#include "kernels/cpu_features.h"

namespace glass {

const char* avx512_vnni_problem() { return __builtin_cpu_supports("avx512vnni") ? nullptr : "not here"; }
const char* amx_int8_problem() { return avx512_vnni_problem(); }

}  // namespace glass
