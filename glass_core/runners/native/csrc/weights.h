// Probabilities as integers, and finding the heaviest or largest without sorting.
//
// A token's weight is round(2^44 * exp((score - best) / temperature)), made by IEEE double operations in the order that
// glass_core/runners/sampling.py has them: the same bits on every processor, and sums that do not depend on their order.
#pragma once

#include <cstdint>
#include <vector>

namespace glass {

constexpr int kWeightBits = 44;
constexpr int32_t kWeightBlock = 64;  // sums and maxima are kept for blocks of these many tokens

// Blocks that hold `size` values.
inline int32_t num_weight_blocks(int32_t size) { return (size + kWeightBlock - 1) / kWeightBlock; }

// Weights of `size` scores; `inverse` = 1 / temperature.
void fill_weights(const float* scores, int32_t size, float best, double inverse, int64_t* weights);

// The factor for a temperature > 0, bounded so that 0 * inverse = 0.
double inverse_temperature(double temperature);

// Sum and largest value of every block.
void summarize_weights(const int64_t* weights, int32_t size, int64_t* sums, int64_t* maxima);

// Largest value of every block.
void block_maxima(const float* scores, int32_t size, float* maxima);

// Ids of the k largest scores and of whatever ties with the k-th, ascending; k in [1, size]. `scratch` is overwritten.
void find_largest(const float* scores, int32_t size, int32_t k, std::vector<float>& scratch, std::vector<int32_t>& ids);

// What a nucleus keeps: weights above `threshold`, and the first `num_ties` equal to it.
struct NucleusCut {
    int64_t threshold;
    int32_t num_ties;
};

// The smallest set of the heaviest weights whose sum reaches `limit` >= 1; all of them when none does. Weights are
// positive; `scratch` is overwritten.
NucleusCut find_nucleus(const std::vector<int64_t>& weights, int64_t limit, std::vector<int64_t>& scratch);

}  // namespace glass
