#include "weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <utility>

#include "elementwise.h"

namespace glass {
namespace {

constexpr double kLog2E = 0x1.71547652b82fep+0;
constexpr double kLn2High = 0x1.62e42feep-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
constexpr double kLowest = -32.0;
constexpr double kLargestInverse = 1e200;
constexpr double kToInteger = 0x1.8p+52;  // adding it leaves the nearest integer in the low bits, ties to even
constexpr double kToWeight = 0x1p+52;     // the same for values in [0, 2^52)
constexpr int kLanes = 16;

// One block's largest score, at most kWeightBlock of them.
GLASS_CLONES float largest_of(const float* scores, int32_t size) {
    float lanes[kLanes];
    for (float& lane : lanes) lane = -INFINITY;
    int32_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        for (int32_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] = scores[i + lane] > lanes[lane] ? scores[i + lane] : lanes[lane];
        }
    }
    for (; i < size; ++i) lanes[0] = scores[i] > lanes[0] ? scores[i] : lanes[0];
    for (int32_t lane = 1; lane < kLanes; ++lane) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    return lanes[0];
}

// The k-th largest of `values`, which are reordered.
float kth_largest(std::vector<float>& values, int32_t k) {
    const auto position = values.begin() + (k - 1);
    std::nth_element(values.begin(), position, values.end(), std::greater<>());
    return *position;
}

int64_t median_of_three(int64_t a, int64_t b, int64_t c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

// A range around a pivot: [first, above) is larger, [above, below) equal, the rest smaller.
struct Partition {
    size_t above;
    size_t below;
    int64_t sum_above;
};

Partition partition(std::vector<int64_t>& weights, size_t first, size_t last, int64_t pivot) {
    Partition parts{first, last, 0};
    size_t i = first;
    while (i < parts.below) {
        if (weights[i] > pivot) {
            parts.sum_above += weights[i];
            std::swap(weights[i++], weights[parts.above++]);
        } else if (weights[i] < pivot) {
            std::swap(weights[i], weights[--parts.below]);
        } else {
            ++i;
        }
    }
    return parts;
}

// Where the sum of the heaviest of `weights`, which are reordered, reaches `wanted`; it does.
NucleusCut cut_exactly(std::vector<int64_t>& weights, int64_t wanted) {
    size_t first = 0, last = weights.size();
    while (true) {
        const int64_t pivot = median_of_three(weights[first], weights[(first + last) / 2], weights[last - 1]);
        const Partition parts = partition(weights, first, last, pivot);
        if (parts.sum_above >= wanted) {
            last = parts.above;
            continue;
        }
        wanted -= parts.sum_above;
        const auto num_equal = static_cast<int64_t>(parts.below - parts.above);
        const int64_t num_needed = (wanted + pivot - 1) / pivot;
        if (num_needed <= num_equal) return {pivot, static_cast<int32_t>(num_needed)};
        wanted -= num_equal * pivot;
        first = parts.below;
    }
}

// Exponent and 6 bits of the fraction, of weights in [1, 2^kWeightBits].
constexpr int kFractionBits = 6;
constexpr size_t kNumBuckets = size_t{kWeightBits + 1} << kFractionBits;

size_t bucket_of(int64_t weight) {
    const auto bits = std::bit_cast<uint64_t>(static_cast<double>(weight));
    return static_cast<size_t>((bits >> (52 - kFractionBits)) - (uint64_t{1023} << kFractionBits));
}

}  // namespace

double inverse_temperature(double temperature) { return std::min(1.0 / temperature, kLargestInverse); }

GLASS_CLONES void fill_weights(const float* scores, int32_t size, float best, double inverse, int64_t* weights) {
    const auto zero = static_cast<double>(best);
    for (int32_t i = 0; i < size; ++i) {
        double x = (static_cast<double>(scores[i]) - zero) * inverse;
        x = x < kLowest ? kLowest : x;
        const double shifted = x * kLog2E + kToInteger;
        const double n = shifted - kToInteger;
        const double r = (x - n * kLn2High) - n * kLn2Low;
        double power = 1.0 / 39916800;  // Taylor's polynomial of exp, down from 1/11!
        power = power * r + 1.0 / 3628800;
        power = power * r + 1.0 / 362880;
        power = power * r + 1.0 / 40320;
        power = power * r + 1.0 / 5040;
        power = power * r + 1.0 / 720;
        power = power * r + 1.0 / 120;
        power = power * r + 1.0 / 24;
        power = power * r + 1.0 / 6;
        power = power * r + 0.5;
        power = power * r + 1.0;
        power = power * r + 1.0;
        const uint64_t exponent = (std::bit_cast<uint64_t>(shifted) << 52) + (uint64_t{1023 + kWeightBits} << 52);
        const double weight = power * std::bit_cast<double>(exponent) + kToWeight;
        weights[i] = std::bit_cast<int64_t>(weight) - std::bit_cast<int64_t>(kToWeight);
    }
}

GLASS_CLONES void summarize_weights(const int64_t* weights, int32_t size, int64_t* sums, int64_t* maxima) {
    for (int32_t first = 0, block = 0; first < size; first += kWeightBlock, ++block) {
        const int32_t last = first + kWeightBlock < size ? first + kWeightBlock : size;
        int64_t sum = 0, largest = 0;
        for (int32_t i = first; i < last; ++i) {
            sum += weights[i];
            largest = weights[i] > largest ? weights[i] : largest;
        }
        sums[block] = sum;
        maxima[block] = largest;
    }
}

void block_maxima(const float* scores, int32_t size, float* maxima) {
    for (int32_t first = 0; first < size; first += kWeightBlock) {
        *maxima++ = largest_of(scores + first, std::min(kWeightBlock, size - first));
    }
}

// The k-th largest of the blocks' maxima is no larger than the k-th largest score: what lies below it is out, and the
// few that remain are told apart exactly.
void find_largest(const float* scores, int32_t size, int32_t k, std::vector<float>& scratch, std::vector<int32_t>& ids) {
    const int32_t num_blocks = num_weight_blocks(size);
    std::vector<float> maxima(static_cast<size_t>(num_blocks));
    block_maxima(scores, size, maxima.data());
    scratch = maxima;
    const float bound = k <= num_blocks ? kth_largest(scratch, k) : -INFINITY;
    ids.clear();
    scratch.clear();
    for (int32_t block = 0; block < num_blocks; ++block) {
        if (maxima[static_cast<size_t>(block)] < bound) continue;
        const int32_t last = std::min((block + 1) * kWeightBlock, size);
        for (int32_t i = block * kWeightBlock; i < last; ++i) {
            if (scores[i] < bound) continue;
            ids.push_back(i);
            scratch.push_back(scores[i]);
        }
    }
    const float least = kth_largest(scratch, k);
    std::erase_if(ids, [&](int32_t id) { return scores[id] < least; });
}

// First by buckets of nearly equal weights, 64 to a power of two; then exactly, within the one where the sum is reached.
NucleusCut find_nucleus(const std::vector<int64_t>& weights, int64_t limit, std::vector<int64_t>& scratch) {
    std::array<int64_t, kNumBuckets> masses{};
    for (const int64_t weight : weights) masses[bucket_of(weight)] += weight;
    size_t bucket = kNumBuckets;
    int64_t wanted = limit;
    while (bucket > 0 && masses[bucket - 1] < wanted) wanted -= masses[--bucket];
    if (bucket == 0) return {0, 0};
    scratch.resize(weights.size());
    size_t count = 0;
    for (const int64_t weight : weights) {  // without a branch, which nothing could predict
        scratch[count] = weight;
        count += bucket_of(weight) == bucket - 1 ? 1 : 0;
    }
    scratch.resize(count);
    return cut_exactly(scratch, wanted);
}

}  // namespace glass
