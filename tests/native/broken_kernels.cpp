// A build whose AVX2 kernels compute wrong results in the function named by the argument. Prints what each instruction
// set's problem is, then which one is chosen, then what asking for the broken one says.
#include <cstdio>
#include <stdexcept>
#include <string>

#include "kernels/cpu_features.h"
#include "kernels/tables.h"

namespace glass {
namespace {

std::string broken;

void quantize(const float* x, int32_t cols, int32_t cols_padded, int8_t* codes, float* scales, float* sums) {
    kPortableKernels.quantize(x, cols, cols_padded, codes, scales, sums);
    if (broken == "quantize") codes[cols - 1] ^= 1;
}

// One row of a batch, in its last place.
void dot_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
              float* out, size_t out_stride) {
    kPortableKernels.dot_rows(rows, index, first, n, x, out, out_stride);
    if (broken == "dot_rows" && x.num_rows > 8) out[(x.num_rows - 1) * out_stride + n - 1] += 1.0f;
}

void accumulate_down(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                     int32_t num_rows, float* y, size_t y_stride) {
    kPortableKernels.accumulate_down(down, index, n, z, z_stride, num_rows, y, y_stride);
    if (broken == "accumulate_down" && down.format == Format::q8) y[down.hidden_padded - 1] += 1.0f;
}

}  // namespace

const char* avx2_problem() { return nullptr; }
const Kernels kAvx2Kernels = {"avx2",
                              quantize,
                              dot_rows,
                              accumulate_down,
                              kPortableKernels.attend_span,
                              kPortableKernels.drop_below,
                              kPortableKernels.clear_unmarked,
                              kPortableKernels.gather_marked};

}  // namespace glass

int main(int, char** arguments) {
    using namespace glass;
    broken = arguments[1];
    for (const IsaState& state : isa_states()) {
        std::printf("%s|%s|%d\n", state.name.c_str(), state.problem.c_str(), state.defective);
    }
    std::printf("%s\n", choose_kernels("").name);
    try {
        std::printf("%s\n", choose_kernels("avx2").name);
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
    }
}
