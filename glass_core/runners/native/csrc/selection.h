// Static selection, natively: ranks of neurons, their weighted fusion and the best of every layer. The rules are those of
// glass_core/sparsity/ranking.py, to the bit: a larger value is more important, of two equal ones the lower index is.
//
// Only fusion needs ranks, and with them a sort. What is kept needs none: a histogram of the scores finds the lowest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "radix_ranks.h"

namespace glass {

// What ranking.py can pack too: so many neurons in a layer, and scores below 2^40.
inline constexpr size_t kMaxNeurons = size_t{1} << 24;
inline constexpr int64_t max_rank_weight(size_t num_neurons) {
    return (int64_t{1} << 39) / static_cast<int64_t>(num_neurons);
}

// What one layer's neurons are chosen by: at least one of the sides, each with an entry for every neuron.
struct LayerEvidence {
    const float* values = nullptr;         // the prompt's side
    const int32_t* model_ranks = nullptr;  // the model's side, in [0, number of neurons)
    // What the ranks of the sides are multiplied by where both are there, at most max_rank_weight(number of neurons).
    int64_t prompt_weight = 0;
    int64_t model_weight = 0;
};

// Chooses layer by layer; its memory serves all layers of one size.
class NeuronSelection {
public:
    // num_neurons in [1, kMaxNeurons].
    explicit NeuronSelection(int32_t num_neurons);

    // Writes the `count` best neurons, 0 <= count <= num_neurons, ascending, to `out`. False, and nothing is written,
    // when a value is NaN or infinite: it has no rank. Throws std::invalid_argument for a model's rank out of range.
    bool choose(const LayerEvidence& evidence, int32_t count, int32_t* out);

private:
    // The lowest score that is kept, and how many of the neurons that have it are.
    struct Threshold {
        uint64_t score;
        size_t num_tied;
    };

    void score(const LayerEvidence& evidence, const KeySpan& span);
    Threshold threshold(size_t count);
    void write_kept(const Threshold& lowest, size_t count, int32_t* out) const;

    RadixRanks sort_;
    std::vector<uint32_t> keys_;
    std::vector<uint64_t> scores_;
    uint64_t highest_score_ = 0;  // none is above it
    std::vector<uint32_t> bins_;
    std::vector<uint64_t> candidates_;
};

}  // namespace glass
