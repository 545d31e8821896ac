#include "ffn.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "rows.h"

namespace glass {
namespace {

int64_t layer_bytes(const FfnWeights& ffn, const uint32_t* words, int32_t num_groups) {
    int64_t bytes = 0;
    for (int32_t group = 0; group < num_groups; ++group) {
        if (words[group] == 0) continue;
        bytes += static_cast<int64_t>(std::popcount(words[group])) * static_cast<int64_t>(ffn.neuron_bytes()) +
                 static_cast<int64_t>(group_scale_bytes(ffn.down));
    }
    return bytes;
}

void unite(const std::vector<const Plan*>& plans, size_t layer, size_t groups, uint32_t* words) {
    std::memset(words, 0, groups * sizeof(uint32_t));
    const Plan* previous = nullptr;
    for (const Plan* plan : plans) {
        if (plan == previous) continue;  // tokens of one row follow each other
        previous = plan;
        const uint32_t* own = (*plan)[layer].words();
        for (size_t group = 0; group < groups; ++group) words[group] |= own[group];
    }
}

}  // namespace

FfnStep::FfnStep(const ModelShape& shape, const PlanStore& plans, const Kernels& kernels, ThreadPool& pool)
    : shape_(shape),
      plans_(plans),
      kernels_(kernels),
      pool_(pool),
      hidden_padded_(padded(shape.hidden_size)),
      cascades_(shape, pool.num_threads()),
      inputs_(shape, kernels, choice_, pool.num_threads()),
      scratch_(static_cast<size_t>(pool.num_threads())) {
    const auto values = static_cast<size_t>(std::max(kTurnValues, kTokenTile * kNeuronsPerChunk));
    for (Scratch& scratch : scratch_) {
        scratch.gate.reserve(values);
        scratch.up.reserve(values);
        scratch.pairs.reserve(2 * values);
        scratch.row_list.reserve(2 * values);
        for (Buffer<int32_t>* list : {&scratch.list, &scratch.down_list}) list->reserve(values);
        for (Buffer<uint32_t>* marks : {&scratch.marks, &scratch.any}) marks->reserve(values / 32);
    }
}

void FfnStep::plan(const std::vector<const Plan*>& token_plans, const std::vector<int32_t>& collected,
                   const std::vector<RefinedToken>& refined) {
    num_tokens_ = static_cast<int32_t>(token_plans.size());
    token_plans_ = token_plans;
    collected_ = collected;
    refined_ = refined;
    cascades_.plan(refined);
    if (cascades_.num_rows() > 0) inputs_.plan(refined, token_plans);
    all_refined_ = std::all_of(refined.begin(), refined.end(), [](const RefinedToken& token) { return token.row >= 0; });
    for (Scratch& scratch : scratch_) scratch.executed = {};
    const auto tokens = static_cast<size_t>(num_tokens_), groups = static_cast<size_t>(shape_.num_groups());
    partials_.reserve(static_cast<size_t>(pool_.num_threads()) * tokens * static_cast<size_t>(hidden_padded_));
    const auto num_collected = static_cast<size_t>(*std::max_element(collected.begin(), collected.end()) + 1);
    z_.reserve(num_collected * static_cast<size_t>(shape_.intermediate_size));
    const bool same = std::all_of(token_plans.begin(), token_plans.end(), [&](const Plan* p) { return p == token_plans[0]; });
    const bool any_dense = std::find(token_plans.begin(), token_plans.end(), &plans_.dense()) != token_plans.end();
    const Plan* shared = same ? token_plans[0] : (any_dense ? &plans_.dense() : nullptr);
    walks_.clear();
    uint32_t* words = walked_words_.reserve(static_cast<size_t>(shape_.num_layers) * groups);
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer, words += groups) {
        walks_.push_back(walk_for(layer, shared, words));
    }
}

// What a layer walks, and its words: the plan that covers all rows (`shared`, null when none does), the union of the
// rows' plans (returned as null), or everything.
const LayerPlan* FfnStep::walk_for(int32_t layer, const Plan* shared, uint32_t* words) const {
    const auto l = static_cast<size_t>(layer), groups = static_cast<size_t>(shape_.num_groups());
    const LayerPlan* walk = shared == nullptr ? nullptr : &(*shared)[l];
    int32_t kept = 0;
    if (walk != nullptr) {
        std::memcpy(words, walk->words(), groups * sizeof(uint32_t));
        kept = walk->count();
    } else {
        unite(token_plans_, l, groups, words);
        for (size_t group = 0; group < groups; ++group) kept += std::popcount(words[group]);
    }
    if (!choice_.all_neurons(num_tokens_, kept, shape_.intermediate_size)) return walk;
    const LayerPlan& all = plans_.dense()[l];
    std::memcpy(words, all.words(), groups * sizeof(uint32_t));
    return &all;
}

FfnWork FfnStep::work(const ModelWeights& weights) const {
    if (cascades_.num_rows() > 0) return cascade_work(weights);
    FfnWork work;
    const auto groups = static_cast<size_t>(shape_.num_groups());
    const uint32_t* words = walked_words_.data();
    for (const LayerWeights& layer : weights.layers) {
        for (size_t group = 0; group < groups; ++group) {
            work.plain += 3 * static_cast<int64_t>(shape_.hidden_size) * std::popcount(words[group]);
        }
        work.bytes += layer_bytes(layer.ffn, words, shape_.num_groups());
        words += groups;
    }
    return work;
}

FfnWork FfnStep::cascade_work(const ModelWeights& weights) const {
    FfnParts plain;
    for (const Scratch& scratch : scratch_) plain.add(scratch.executed);
    FfnParts refined = plain, read = plain;
    refined.rows = 0;
    refined.add(inputs_.executed());
    read.add(inputs_.executed());
    const FfnWeights& ffn = weights.layers.front().ffn;  // all layers have the same sizes
    return {all_refined_ ? 0 : plain.weights(shape_), refined.weights(shape_), read.bytes(ffn)};
}

float* FfnStep::partial_row(int32_t thread, int32_t token) {
    const auto row = static_cast<size_t>(thread) * static_cast<size_t>(num_tokens_) + static_cast<size_t>(token);
    return partials_.data() + row * static_cast<size_t>(hidden_padded_);
}

const float* FfnStep::partial(int32_t thread, int32_t token) const {
    return const_cast<FfnStep*>(this)->partial_row(thread, token);
}

const float* FfnStep::collected(int32_t i) const {
    return z_.data() + static_cast<size_t>(i) * static_cast<size_t>(shape_.intermediate_size);
}

void FfnStep::run(const FfnWeights& ffn, int32_t layer, Activations& x) {
    if (cascades_.num_rows() == 0) {
        pool_.parallel([&](int thread, int) {
            for (int32_t first = 0; first < num_tokens_; first += kTokenTile) run_tile(ffn, tile_at(layer, first, thread), x);
        });
        return;
    }
    for (int32_t first = 0; first < num_tokens_; first += kTokenTile) {
        if (inputs_.any(first)) {
            pool_.parallel([&](int thread, int) { inputs_.run(ffn, tile_at(layer, first, thread), x, cascades_); });
        }
        pool_.parallel([&](int thread, int) { run_tile(ffn, tile_at(layer, first, thread), x); });
    }
}

TokenTile FfnStep::tile_at(int32_t layer, int32_t first, int32_t thread) const {
    return {layer, first, std::min(kTokenTile, num_tokens_ - first), thread};
}

void FfnStep::run_tile(const FfnWeights& ffn, const Tile& tile, Activations& x) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const ChunkLayout& layout = plans_.layout();
    const ActivationView inputs = x.view(tile.first, tile.count);
    std::memset(partial_row(tile.thread, tile.first), 0,
                sizeof(float) * static_cast<size_t>(tile.count) * static_cast<size_t>(hidden_padded_));
    const int32_t per_turn = chunks_per_turn(tile.count);
    for (int32_t i = 0; i < layout.chunks_per_thread(); i += per_turn) {
        const int32_t chunk = layout.chunk(tile.thread, i);
        const int32_t num_chunks = std::min(per_turn, layout.chunks_per_thread() - i);
        const Turn turn{chunk, num_chunks, neurons_of(tile.layer, chunk, num_chunks, scratch)};
        if (turn.neurons.count == 0) continue;
        if (cascades_.num_rows() > 0) {
            run_cascade(ffn, turn, tile, x);
        } else {
            run_turn(ffn, turn, tile, inputs);
        }
    }
}

void FfnStep::run_turn(const FfnWeights& ffn, const Turn& turn, const Tile& tile, const ActivationView& inputs) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& neurons = turn.neurons;
    const auto width = static_cast<size_t>(turn.width());
    multiply_rows(ffn, turn, tile, 0, inputs);
    mask(ffn, turn, tile);
    kernels_.accumulate_down(ffn.down, neurons.index, neurons.count, scratch.gate.data(), width, tile.count,
                             partial_row(tile.thread, tile.first), static_cast<size_t>(hidden_padded_));
}

NeuronRange FfnStep::neurons_of(int32_t layer, int32_t chunk, int32_t num_chunks, Scratch& scratch) const {
    const LayerPlan* walk = walks_[static_cast<size_t>(layer)];
    if (walk != nullptr) return walk->range(chunk, num_chunks);
    const uint32_t* words = walked_words_.data() + static_cast<size_t>(layer) * static_cast<size_t>(shape_.num_groups());
    int32_t* list = scratch.list.data();
    int32_t count = 0;
    for (int32_t i = 0; i < num_chunks; ++i) count += expand(plans_.layout(), words, chunk + i, list + count).count;
    return {list, count};
}

// Gate and up of the tile's tokens from t on, whose inputs these are.
void FfnStep::multiply_rows(const FfnWeights& ffn, const Turn& turn, const Tile& tile, int32_t t,
                            const ActivationView& inputs) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& neurons = turn.neurons;
    const int32_t width = turn.width();
    int32_t* rows = scratch.row_list.data();
    for (int32_t i = 0; i < neurons.count; ++i) {
        rows[2 * i] = 2 * neurons.index[i];
        rows[2 * i + 1] = 2 * neurons.index[i] + 1;
    }
    float* pairs = scratch.pairs.data();
    kernels_.dot_rows(ffn.gate_up, rows, 0, 2 * neurons.count, inputs, pairs, 2 * static_cast<size_t>(width));
    for (ptrdiff_t to = t; to < t + inputs.num_rows; ++to, pairs += 2 * width) {
        split_pairs(pairs, neurons.count, scratch.gate.data() + to * width, scratch.up.data() + to * width);
    }
}

// act(gate) * up of the tile's token t, in place of its gate.
float* FfnStep::multiply_gate(const FfnWeights& ffn, const Turn& turn, const Tile& tile, int32_t t) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& neurons = turn.neurons;
    const ptrdiff_t at = static_cast<ptrdiff_t>(t) * turn.width();
    float *gate = scratch.gate.data() + at, *up = scratch.up.data() + at;
    if (ffn.gate_bias != nullptr) {
        add_gathered(gate, ffn.gate_bias, neurons.index, neurons.count);
        add_gathered(up, ffn.up_bias, neurons.index, neurons.count);
    }
    gated_activation(shape_.activation, gate, up, neurons.count);
    return gate;
}

// z of every token, in place of its gate; 0 where the token's own plan lacks the neuron. Collected ones are copied.
void FfnStep::mask(const FfnWeights& ffn, const Turn& turn, const Tile& tile) {
    const NeuronRange& neurons = turn.neurons;
    for (int32_t t = 0; t < tile.count; ++t) {
        const int32_t token = tile.first + t;
        float* z = multiply_gate(ffn, turn, tile, t);
        const LayerPlan& own = (*token_plans_[static_cast<size_t>(token)])[static_cast<size_t>(tile.layer)];
        // whoever keeps all that is walked needs no mask
        if (&own != walks_[static_cast<size_t>(tile.layer)]) keep_listed(z, neurons.index, own.words(), neurons.count);
        if (collected_[static_cast<size_t>(token)] >= 0) collect(turn, token, z);
    }
}

// A collected token is dense, so the turn holds all neurons of its groups.
void FfnStep::collect(const Turn& turn, int32_t token, const float* z) {
    float* to = z_.data() + static_cast<size_t>(collected_[static_cast<size_t>(token)]) *
                                static_cast<size_t>(shape_.intermediate_size);
    for (int32_t chunk = turn.chunk; chunk < turn.chunk + turn.num_chunks; ++chunk) {
        plans_.layout().for_groups(chunk, [&](int32_t group) {
            const int32_t neuron = group * kGroup, count = std::min(kGroup, shape_.intermediate_size - neuron);
            std::memcpy(to + neuron, z, sizeof(float) * static_cast<size_t>(count));
            z += count;
        });
    }
}

}  // namespace glass
