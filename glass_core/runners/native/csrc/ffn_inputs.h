// The first stage of cascades (refinement.h): gate and u of refined tokens, from the columns of the inputs they keep.
//
// Every thread owns groups of 32 inputs, which share scales, and adds them up for all neurons; whoever needs u adds the
// threads' sums in order.
#pragma once

#include <cstdint>
#include <vector>

#include "activations.h"
#include "buffer.h"
#include "ffn_choice.h"
#include "plans.h"
#include "refinement.h"

namespace glass {

// Tokens that are multiplied together; their inputs and partial outputs stay in the second-level cache.
inline constexpr int32_t kTokenTile = 64;

// What a thread multiplies at a time: tokens with one layer's weights.
struct TokenTile {
    int32_t layer;
    int32_t first;
    int32_t count;
    int32_t thread;
};

class InputStage {
public:
    InputStage(const ModelShape& shape, const Kernels& kernels, const FfnChoice& choice, int32_t num_threads);

    // Lay out a step: one plan per token.
    void plan(const std::vector<RefinedToken>& tokens, const std::vector<const Plan*>& token_plans);

    // Whether a tile that begins there has refined tokens.
    bool any(int32_t first) const { return num_refined_[static_cast<size_t>(first / kTokenTile)] > 0; }

    // A thread's sums of one tile's refined tokens; `x` are all tokens' inputs.
    void run(const FfnWeights& ffn, const TokenTile& tile, Activations& x, CascadeCounts& counts);

    // gate[i], up[i] = those of neuron index[i] of a refined token of the tile that was run last, without bias.
    void gather(int32_t token, const NeuronRange& neurons, float* gate, float* up) const;

    // Once per step, like everything that is read, by all threads and layers.
    FfnParts executed() const;

private:
    // Of one thread.
    struct Own {
        std::vector<int32_t> inputs;  // ascending
        Buffer<float> values;         // (refined tokens of the tile, inputs)
        Buffer<uint32_t> marks, any;
        Buffer<int32_t> list;
        FfnParts executed;
    };
    void choose(Own& own, const TokenTile& tile, int32_t token, const float* x, CascadeCounts& counts);
    NeuronRange narrow(Own& own, const TokenTile& tile, int32_t num_refined) const;
    size_t sums_at(int32_t thread, int32_t place) const;
    void gather_part(int32_t token, size_t part, const NeuronRange& neurons, float* to) const;

    const ModelShape& shape_;
    const Kernels& kernels_;
    const FfnChoice& choice_;
    std::vector<RefinedToken> tokens_;
    std::vector<const Plan*> token_plans_;
    std::vector<int32_t> places_;       // of every token among the refined ones of its tile, -1 = not refined
    std::vector<int32_t> num_refined_;  // of every tile
    size_t max_refined_ = 0;            // of these the largest
    int32_t first_refined_tile_ = 0;    // where it begins
    int32_t neurons_padded_;
    std::vector<Own> own_;
    Buffer<float> sums_;                // (threads, max_refined, gates and u, neurons_padded)
};

}  // namespace glass
