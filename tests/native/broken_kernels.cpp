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

// "far": the last value of the last of many queries; "near": exponentials a thousandth off; "int8": one format's scales.
void attend_span(const KeySpan& span, const float* q, const KeyRange* ranges, int32_t num_queries, float* out,
                 SoftmaxState* states) {
    kPortableKernels.attend_span(span, q, ranges, num_queries, out, states);
    const int32_t last = num_queries - 1;
    if (broken == "attend_span far" && num_queries > 6) out[last * span.padded_dim + span.head_dim - 1] += 1.0f;
    if (broken == "attend_span near" && states[0].sum != __builtin_rintf(states[0].sum)) states[0].sum *= 1.001f;
    if (broken == "attend_span int8" && span.format == KvFormat::int8) out[0] *= 2.0f;
}

void drop_below(const float* values, const float* weights, const int32_t* index, float threshold, int32_t n,
                uint32_t* bits) {
    kPortableKernels.drop_below(values, weights, index, threshold, n, bits);
    if (broken == "drop_below") bits[(n - 1) / 32] ^= 1u << ((n - 1) % 32);
}

void clear_unmarked(const uint32_t* bits, int32_t n, float* values) {
    kPortableKernels.clear_unmarked(bits, broken == "clear_unmarked" ? n - 16 : n, values);
}

int32_t gather_marked(const uint32_t* bits, int32_t n, const void* from, void* to) {
    return kPortableKernels.gather_marked(bits, broken == "gather_marked" ? n - 16 : n, from, to);
}

}  // namespace

const char* avx2_problem() { return nullptr; }
const Kernels kAvx2Kernels = {"avx2",
                              quantize,
                              dot_rows,
                              accumulate_down,
                              attend_span,
                              drop_below,
                              clear_unmarked,
                              gather_marked};

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
