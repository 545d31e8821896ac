// The arithmetic of the native runner: dot products with packed weight rows, the neuron-major down projection and
// attention over a span of keys, one table of functions per instruction set (ISA).
//
// Contract shared by every table:
// * A row t of the activations gets the same bits whatever T is and whatever the other rows hold, so a batch of N
//   equals N singles and a chunked prefill equals a whole one.
// * Integer parts (activation codes, dot products of codes) are exact, hence equal across ISAs; float accumulation
//   follows an order fixed per ISA, so two ISAs agree to rounding only.
// * Nothing is read past the end of a packed row, and pointers to packed rows need no alignment.
// * Functions are reentrant; scratch memory is per thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attention_span.h"

namespace glass {

inline constexpr int32_t kGroup = 32;  // values along the reduced dimension that share one scale
inline constexpr int32_t kChunk = 64;  // packed dimensions are padded to multiples of this

enum class Format : uint8_t { q4, q8, bf16 };

// A matrix of packed rows.
// q4: cols_padded/2 bytes of codes (byte i of a 32-byte chunk: value i low nibble, value 32+i high nibble), then per
//     group float16 (d, m); value = d*code + m.
// q8: cols_padded bytes of codes (q + 128), then per group float16 d; value = d*(code - 128).
// bf16: cols_padded bfloat16.
struct RowsView {
    const uint8_t* base;
    size_t stride;  // bytes from row to row
    int32_t cols_padded;
    Format format;
};

// 127 * 128: a 15-bit number that splits into two signed bytes, high*128 + low.
inline constexpr int32_t kDownSteps = 16256;
inline constexpr int32_t kCodedDownSteps = 127;

// Down projection, one packed column per neuron without scales; the scales of 32 consecutive neurons are shared:
// q4: scales[group] = hidden_padded float16 d, then hidden_padded float16 m; q8: hidden_padded float16 d; bf16: unused.
// With `units` (q4 only, else null) scales are 8-bit integers, multiples of them: scales[group] = hidden_padded int8 for
// d, then as many for m; units = hidden_padded float16 for d, then as many for m. Then z is rounded to 8 bits, too.
struct DownView {
    const uint8_t* base;
    size_t stride;  // bytes from neuron to neuron
    const uint8_t* scales;
    int32_t hidden_padded;
    Format format;
    const uint16_t* units = nullptr;
};

// These are static, not members: see common.h.
//
// How many scales 32 neurons share, and their bytes; the bytes of the units of them all.
[[maybe_unused]] static inline size_t scales_per_group(const DownView& down) {
    const size_t planes = down.format == Format::q4 ? 2 : (down.format == Format::q8 ? 1 : 0);
    return planes * static_cast<size_t>(down.hidden_padded);
}
[[maybe_unused]] static inline size_t group_scale_bytes(const DownView& down) {
    return scales_per_group(down) * (down.units == nullptr ? sizeof(uint16_t) : sizeof(int8_t));
}
[[maybe_unused]] static inline size_t unit_bytes(const DownView& down) {
    return down.units == nullptr ? 0 : scales_per_group(down) * sizeof(uint16_t);
}
// What z is rounded to.
[[maybe_unused]] static inline int32_t z_steps(const DownView& down) {
    return down.units == nullptr ? kDownSteps : kCodedDownSteps;
}

// T rows quantized by `quantize`. sums[t][g] = scale * (sum of the codes of group g).
// bf16 weights read `values` (cols_padded floats a row, zero padded) and nothing else; q4 and q8 never read `values`.
struct ActivationView {
    const float* values;
    size_t values_stride;
    const int8_t* codes;
    size_t codes_stride;
    const float* scales;
    const float* sums;
    size_t groups_stride;
    int32_t num_rows;
};

struct Kernels {
    const char* name;

    // Symmetric int8 per group of 32: scale = max|x| / 127, code = round to nearest even of x / scale. Writes
    // cols_padded codes and cols_padded/32 scales and sums; values past `cols` count as 0. A group whose max|x| is
    // below 1e-36 becomes 0.
    void (*quantize)(const float* x, int32_t cols, int32_t cols_padded, int8_t* codes, float* scales, float* sums);

    // out[t*out_stride + i] = dot(row(index ? index[i] : first + i), x_t) for i in [0, n), t in [0, T).
    void (*dot_rows)(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                     float* out, size_t out_stride);

    // y[t*y_stride + h] += sum over i of z[t*z_stride + i] * down(index[i])[h], for h in [0, hidden_padded).
    // index ascends. z = 0 contributes exactly nothing; splitting a call between two groups of 32 neurons changes
    // nothing. For q4 and q8, z is rounded per (row, group of 32 neurons) to z_steps(down) steps of its largest
    // magnitude, so that the sums over a group are exact integers.
    void (*accumulate_down)(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                            int32_t num_rows, float* y, size_t y_stride);

    // For each of num_queries queries (padded_dim floats apart, 0 past head_dim), over the keys of the span that it
    // sees: states[i] of the scores q . key, and out[i*padded_dim + d] = sum of exp(score - largest) * value[d]. A query
    // that sees none gets {-inf, 0} and zeros.
    void (*attend_span)(const KeySpan& span, const float* q, const KeyRange* ranges, int32_t num_queries, float* out,
                        SoftmaxState* states);

    // Choosing among n neurons, whose marks are bits: position i is bit i % 32 of bits[i / 32].
    //
    // Clears the marks of positions with |values[i]| * weights[index[i]] < threshold; a score that is NaN is not below.
    void (*drop_below)(const float* values, const float* weights, const int32_t* index, float threshold, int32_t n,
                       uint32_t* bits);
    // values[i] = 0 where position i is not marked.
    void (*clear_unmarked)(const uint32_t* bits, int32_t n, float* values);
    // Copies the 4-byte values of the marked positions, in order; returns how many. `to` has room for n and may be
    // `from`.
    int32_t (*gather_marked)(const uint32_t* bits, int32_t n, const void* from, void* to);
};

// An instruction set this build has kernels for. `problem` is empty when they can be used and else says why not:
// the processor or the operating system lacks it, or (`defective`) the kernels failed their known-answer check.
struct IsaState {
    std::string name;
    std::string problem;
    bool defective;
};

// Best first; ends in "portable", which can always be used. A check runs when its kernels are first asked about, and
// once: asking for one ISA by name runs nothing of the others.
std::vector<IsaState> isa_states();

// Those that can be used, best first.
std::vector<std::string> available_isas();

// Those better than the best that can be used: why it is not one of them. Runs no check of the ISAs below.
std::vector<IsaState> passed_over_isas();

// nullptr when this build does not have the ISA or it cannot be used.
const Kernels* find_kernels(std::string_view isa);

// The named kernels, or the best where no name is given. Throws std::invalid_argument with what can be used, and why
// the rest cannot, when the named ones cannot.
const Kernels& choose_kernels(const std::string& isa);

}  // namespace glass
