#include "cpu_features.h"

#if defined(__x86_64__)

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace glass {
namespace {

struct Leaf {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the processor does not know the leaf.
Leaf cpuid(unsigned leaf, unsigned subleaf) {
    Leaf result;
    __get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx);
    return result;
}

// GCC 12's __builtin_cpu_supports has no names for these: CPUID leaf 1 and leaf 7.
bool has_f16c() { return (cpuid(1, 0).ecx & (1u << 29)) != 0; }
bool has_avx_vnni() { return (cpuid(7, 1).eax & (1u << 4)) != 0; }
bool has_amx_int8() {
    constexpr unsigned tile = 1u << 24, int8 = 1u << 25;
    return (cpuid(7, 0).edx & (tile | int8)) == (tile | int8);
}

// Which registers the operating system saves: XCR0, to be read only where OSXSAVE is set.
uint64_t enabled_state() {
    if ((cpuid(1, 0).ecx & (1u << 27)) == 0) return 0;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

bool permits_tiles() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

}  // namespace

// __builtin_cpu_supports also says that the operating system saves the wide registers
const char* avx2_problem() {
    const bool present = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    return present ? nullptr : "this processor has no AVX2 with FMA and F16C";
}

const char* avx2_vnni_problem() {
    const char* problem = avx2_problem();
    if (problem != nullptr) return problem;
    return has_avx_vnni() ? nullptr : "this processor has no AVX-VNNI";
}

const char* avx512_vnni_problem() {
    const bool present = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vnni");
    return present ? nullptr : "this processor has no AVX-512 with F, BW, VL, DQ and VNNI";
}

const char* amx_int8_problem() {
    const char* problem = avx512_vnni_problem();
    if (problem != nullptr) return problem;
    if (!has_amx_int8()) return "this processor has no AMX-INT8";
    constexpr uint64_t tiles = 3u << 17;  // XTILECFG, XTILEDATA
    if ((enabled_state() & tiles) != tiles) return "the operating system does not save the AMX tile registers";
    return permits_tiles() ? nullptr : "the operating system does not permit the AMX tile registers (arch_prctl)";
}

}  // namespace glass

#elif defined(__aarch64__)

#include <sys/auxv.h>

#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#ifndef HWCAP2_I8MM
#define HWCAP2_I8MM (1 << 13)
#endif

namespace glass {

const char* neon_dotprod_problem() {
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0 ? nullptr : "this processor has no dot product extension";
}

const char* neon_i8mm_problem() {
    const char* problem = neon_dotprod_problem();
    if (problem != nullptr) return problem;
    return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0 ? nullptr : "this processor has no int8 matrix extension (I8MM)";
}

}  // namespace glass

#endif
