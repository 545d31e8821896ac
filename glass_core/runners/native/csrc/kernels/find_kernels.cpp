// Which kernel tables this build holds and this CPU can run.
#include <cstdlib>
#include <memory>
#include <new>

#include "common.h"
#include "tables.h"

#if defined(GLASS_HAVE_NEON_DOTPROD)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif
#if defined(GLASS_HAVE_AVX2) || defined(GLASS_HAVE_AVX2_VNNI)
#include <cpuid.h>
#endif

namespace glass {
namespace {

struct Candidate {
    const Kernels* table;
    bool (*supported)();
};

#if defined(GLASS_HAVE_AVX512_VNNI)
bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(GLASS_HAVE_AVX2) || defined(GLASS_HAVE_AVX2_VNNI)
bool has_f16c() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

// __builtin_cpu_supports("avx2") also says that the operating system saves the wide registers
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
#endif

#if defined(GLASS_HAVE_AVX2_VNNI)
// GCC 12's __builtin_cpu_supports has no name for AVX-VNNI: CPUID leaf 7, subleaf 1, EAX bit 4.
bool has_avx2_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}
#endif

#if defined(GLASS_HAVE_NEON_DOTPROD)
bool has_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif

const Candidate kCandidates[] = {
#if defined(GLASS_HAVE_AVX512_VNNI)
    {&kAvx512VnniKernels, has_avx512_vnni},
#endif
#if defined(GLASS_HAVE_AVX2_VNNI)
    {&kAvx2VnniKernels, has_avx2_vnni},
#endif
#if defined(GLASS_HAVE_AVX2)
    {&kAvx2Kernels, has_avx2},
#endif
#if defined(GLASS_HAVE_NEON_DOTPROD)
    {&kNeonDotprodKernels, has_dotprod},
#endif
    {&kPortableKernels, [] { return true; }},
};

struct Free {
    void operator()(void* block) const { std::free(block); }
};

}  // namespace

const Kernels* find_kernels(std::string_view isa) {
    for (const Candidate& candidate : kCandidates) {
        if (isa == candidate.table->name) return candidate.supported() ? candidate.table : nullptr;
    }
    return nullptr;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Candidate& candidate : kCandidates) {
        if (candidate.supported()) names.emplace_back(candidate.table->name);
    }
    return names;
}

void* kernel_scratch(size_t bytes) {
    thread_local std::unique_ptr<void, Free> block;
    thread_local size_t size = 0;
    if (bytes > size) {
        const size_t rounded = (bytes + 4095) / 4096 * 4096;
        void* fresh = std::aligned_alloc(64, rounded);
        if (fresh == nullptr) throw std::bad_alloc();
        block.reset(fresh);
        size = rounded;
    }
    return block.get();
}

}  // namespace glass
