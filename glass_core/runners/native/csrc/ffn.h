// The gated FFN of one step: z = act(gate x) * (up x), output z down, over the neurons that the step's rows keep.
//
// Rows with different plans share one walk, over the union of their plans or over all neurons, whichever is cheaper
// (ffn_choice.h): every neuron is read once, z of a row that does not keep it is set to 0, and a 0 contributes exactly
// nothing. A row's result is therefore the one it gets alone.
//
// A step with refined rows (refinement.h) multiplies in passes, each over what some row still wants: columns of gate and up
// for the refined rows (ffn_inputs.h) and their rows for the others, then columns of down (ffn_cascade.cpp). Such a mixed
// step reads gate and up twice: from rows and from columns a token gets other roundings, and it is to get those that it gets
// alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "activations.h"
#include "buffer.h"
#include "ffn_choice.h"
#include "ffn_inputs.h"
#include "plans.h"
#include "refinement.h"
#include "thread_pool.h"

namespace glass {

// Values of z that a thread works on at a time: few tokens run through all of the thread's neurons at once, because a
// long walk over the weights can be prefetched; many tokens keep z in the first levels of the cache.
inline constexpr int32_t kTurnValues = 16384;

// What the FFNs of a step executed, summed over layers.
struct FfnWork {
    int64_t plain = 0;    // weights multiplied for every token that is not refined
    int64_t refined = 0;  // and for every token that is
    int64_t bytes = 0;    // of all weights read
};

class FfnStep {
public:
    FfnStep(const ModelShape& shape, const PlanStore& plans, const Kernels& kernels, ThreadPool& pool);

    // Lay out a step: one plan per token, and for tokens whose z is collected their place among the collected ones
    // (-1 = not collected; collected tokens are dense). `refined` has an entry per token, or none if no token is.
    void plan(const std::vector<const Plan*>& token_plans, const std::vector<int32_t>& collected,
              const std::vector<RefinedToken>& refined);

    FfnWork work(const ModelWeights& weights) const;
    // Of the refined rows, by themselves.
    std::vector<CascadeWork> cascades(const ModelWeights& weights) const { return cascades_.work(weights); }
    FfnChoice& choice() { return choice_; }

    // partial(thread, token)[0, hidden) of all threads, in order, then sum to the layer's output without its bias.
    void run(const FfnWeights& ffn, int32_t layer, Activations& x);
    int32_t num_partials() const { return pool_.num_threads(); }
    const float* partial(int32_t thread, int32_t token) const;

    // z of the last layer run, (intermediate_size,), of the i-th collected token
    const float* collected(int32_t i) const;

private:
    struct Scratch {
        Buffer<float> gate, up, pairs;  // pairs: gate and up of a neuron, beside each other
        Buffer<int32_t> list, row_list, down_list;
        Buffer<uint32_t> marks, any;  // of cascades: (tokens, turn's neurons / 32), and of any token
        FfnParts executed;  // of cascades, columns of gate and up left out
    };
    using Tile = TokenTile;
    // Some successive chunks of one thread, and the row length of gate and up.
    struct Turn {
        int32_t chunk;
        int32_t num_chunks;
        NeuronRange neurons;
        int32_t width() const { return num_chunks * kNeuronsPerChunk; }
        int32_t mark_words() const { return width() / 32; }
    };

    const LayerPlan* walk_for(int32_t layer, const Plan* shared, uint32_t* words) const;
    Tile tile_at(int32_t layer, int32_t first, int32_t thread) const;
    FfnWork cascade_work(const ModelWeights& weights) const;
    void run_tile(const FfnWeights& ffn, const Tile& tile, Activations& x);
    void run_turn(const FfnWeights& ffn, const Turn& turn, const Tile& tile, const ActivationView& inputs);
    static int32_t chunks_per_turn(int32_t num_tokens) { return std::max(1, kTurnValues / (num_tokens * kNeuronsPerChunk)); }
    NeuronRange neurons_of(int32_t layer, int32_t chunk, int32_t num_chunks, Scratch& scratch) const;
    void multiply_rows(const FfnWeights& ffn, const Turn& turn, const Tile& tile, int32_t t, const ActivationView& inputs);
    void mask(const FfnWeights& ffn, const Turn& turn, const Tile& tile);
    float* multiply_gate(const FfnWeights& ffn, const Turn& turn, const Tile& tile, int32_t t);
    void run_cascade(const FfnWeights& ffn, const Turn& turn, const Tile& tile, Activations& x);
    void multiply(const FfnWeights& ffn, const Turn& turn, const Tile& tile, Activations& x);
    void choose(const FfnWeights& ffn, const Turn& turn, const Tile& tile);
    NeuronRange narrow(const Turn& turn, const Tile& tile);
    void collect(const Turn& turn, int32_t token, const float* z);
    float* partial_row(int32_t thread, int32_t token);

    const ModelShape& shape_;
    const PlanStore& plans_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    int32_t hidden_padded_;
    int32_t num_tokens_ = 0;
    FfnChoice choice_;
    std::vector<const Plan*> token_plans_;
    std::vector<int32_t> collected_;
    std::vector<const LayerPlan*> walks_;    // per layer what is walked; null = the list of walked_words_
    Buffer<uint32_t> walked_words_;          // (num_layers, num_groups)
    Buffer<float> partials_;                 // (threads, tokens, hidden_padded)
    Buffer<float> z_;                        // (collected tokens, intermediate_size)
    std::vector<RefinedToken> refined_;
    bool all_refined_ = false;               // no token needs rows of gate and up
    CascadeCounts cascades_;
    InputStage inputs_;
    std::vector<Scratch> scratch_;           // one per thread
};

}  // namespace glass
