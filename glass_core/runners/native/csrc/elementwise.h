// Element-by-element parts of the model, float32: norms, rotation, activations.
//
// They are compiled for several instruction sets and chosen at load (GLASS_CLONES), and without contraction to fused
// multiply-adds, so that a value does not depend on where in a vector it sits: a row then computes the same bits
// alone, in a batch, and whatever neurons its batch-mates keep.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define GLASS_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define GLASS_CLONES
#endif

namespace glass {

enum class Activation : uint8_t { silu, gelu, gelu_tanh };

// out = x / rms(x) * weight. `out` may be `x`.
void rms_norm(const float* x, const float* weight, int32_t size, float eps, float* out);

// Turn pairs (i, i + half) of every head of x (num_heads, 2 * half) by angles with these cosines and sines.
void rotate(float* x, int32_t num_heads, const float* cosines, const float* sines, int32_t half);

// What is left of x (size,) after its int8 codes, with one scale per group of 32: out = x - scale * code.
void subtract_codes(const float* x, const int8_t* codes, const float* scales, int32_t size, float* out);

// values[i] += bias[index[i]]
void add_gathered(float* values, const float* bias, const int32_t* index, int32_t size);

// values[i] = 0 where bit index[i] of `words` is clear
void keep_listed(float* values, const int32_t* index, const uint32_t* words, int32_t size);

// first[i] = pairs[2i], second[i] = pairs[2i + 1], for i in [0, size)
void split_pairs(const float* pairs, int32_t size, float* first, float* second);

// gate[i] = act(gate[i]) * up[i]
void gated_activation(Activation activation, float* gate, const float* up, int32_t size);

// y *= factor
void scale(float* y, float factor, int32_t size);

// y += x
void add(float* y, const float* x, int32_t size);

// Largest value of scores and its first index; `finite` is cleared when a score is NaN or infinite.
struct Largest {
    float value;
    int32_t index;
    bool finite;
};
Largest largest(const float* scores, int32_t size);

// sum of squares in float64
double sum_squares(const float* x, int32_t size);
// sums of |x * scale| and of its square, added to the two accumulators element by element
void add_normalized(const float* x, double scale, int32_t size, float* sum_abs, float* sum_of_squares);

}  // namespace glass
