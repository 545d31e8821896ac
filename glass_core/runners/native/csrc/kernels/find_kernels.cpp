// Which kernel tables this build holds, which of them can be used here, and the choice among them.
#include <cstdlib>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>

#include "check_kernels.h"
#include "common.h"
#include "cpu_features.h"
#include "tables.h"

namespace glass {
namespace {

struct Candidate {
    const Kernels* table;
    const char* (*problem)();
};

const Candidate kCandidates[] = {
#if defined(GLASS_HAVE_AMX_INT8)
    {&kAmxInt8Kernels, amx_int8_problem},
#endif
#if defined(GLASS_HAVE_AVX512_VNNI)
    {&kAvx512VnniKernels, avx512_vnni_problem},
#endif
#if defined(GLASS_HAVE_AVX2_VNNI)
    {&kAvx2VnniKernels, avx2_vnni_problem},
#endif
#if defined(GLASS_HAVE_AVX2)
    {&kAvx2Kernels, avx2_problem},
#endif
#if defined(GLASS_HAVE_NEON_I8MM)
    {&kNeonI8mmKernels, neon_i8mm_problem},
#endif
#if defined(GLASS_HAVE_NEON_DOTPROD)
    {&kNeonDotprodKernels, neon_dotprod_problem},
#endif
    {&kPortableKernels, []() -> const char* { return nullptr; }},
};
constexpr size_t kNumCandidates = std::size(kCandidates);

IsaState examine(const Candidate& candidate) {
    const std::string name = candidate.table->name;
    if (const char* problem = candidate.problem()) return {name, problem, false};
    const char* defect = candidate.table == &kPortableKernels ? nullptr : find_defect(*candidate.table);
    if (defect == nullptr) return {name, "", false};
    return {name, std::string("its kernels failed their check: ") + defect + " computes wrong results", true};
}

// A candidate is examined once: its check runs its kernels.
const IsaState& state_of(size_t i) {
    static std::once_flag once[kNumCandidates];
    static IsaState states[kNumCandidates];
    std::call_once(once[i], [i] { states[i] = examine(kCandidates[i]); });
    return states[i];
}

bool usable(size_t i) { return state_of(i).problem.empty(); }

// "portable" comes last and can always be used.
size_t best_candidate() {
    size_t best = 0;
    while (!usable(best)) ++best;
    return best;
}

std::string describe_states() {
    std::string available, missing;
    for (const IsaState& state : isa_states()) {
        std::string& list = state.problem.empty() ? available : missing;
        list += (list.empty() ? "" : ", ") + state.name + (state.problem.empty() ? "" : " (" + state.problem + ")");
    }
    return "available: " + available + (missing.empty() ? "" : "; not available: " + missing);
}

struct Free {
    void operator()(void* block) const { std::free(block); }
};

}  // namespace

std::vector<IsaState> isa_states() {
    std::vector<IsaState> states;
    for (size_t i = 0; i < kNumCandidates; ++i) states.push_back(state_of(i));
    return states;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const IsaState& state : isa_states()) {
        if (state.problem.empty()) names.push_back(state.name);
    }
    return names;
}

std::vector<IsaState> passed_over_isas() {
    std::vector<IsaState> states;
    for (size_t i = 0; i < best_candidate(); ++i) states.push_back(state_of(i));
    return states;
}

const Kernels* find_kernels(std::string_view isa) {
    for (size_t i = 0; i < kNumCandidates; ++i) {
        if (isa == kCandidates[i].table->name) return usable(i) ? kCandidates[i].table : nullptr;
    }
    return nullptr;
}

const Kernels& choose_kernels(const std::string& isa) {
    if (const Kernels* kernels = find_kernels(isa)) return *kernels;
    if (!isa.empty()) throw std::invalid_argument("instruction set '" + isa + "' cannot be used; " + describe_states());
    return *kCandidates[best_candidate()].table;
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
