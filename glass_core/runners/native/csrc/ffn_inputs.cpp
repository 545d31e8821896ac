#include "ffn_inputs.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "elementwise.h"
#include "rows.h"
#include "thread_pool.h"

namespace glass {

InputStage::InputStage(const ModelShape& shape, const Kernels& kernels, const FfnChoice& choice, int32_t num_threads)
    : shape_(shape),
      kernels_(kernels),
      choice_(choice),
      neurons_padded_(padded(shape.intermediate_size)),
      own_(static_cast<size_t>(num_threads)) {
    for (int32_t thread = 0; thread < num_threads; ++thread) {
        const auto [first, last] = share(shape.hidden_size, kGroup, thread, num_threads);
        std::vector<int32_t>& inputs = own_[static_cast<size_t>(thread)].inputs;
        inputs.resize(static_cast<size_t>(last - first));
        std::iota(inputs.begin(), inputs.end(), first);
    }
}

void InputStage::plan(const std::vector<RefinedToken>& tokens, const std::vector<const Plan*>& token_plans) {
    tokens_ = tokens;
    token_plans_ = token_plans;
    places_.assign(tokens.size(), -1);
    num_refined_.assign(tokens.size() / static_cast<size_t>(kTokenTile) + 1, 0);
    for (size_t t = 0; t < tokens.size(); ++t) {
        if (tokens[t].row >= 0) places_[t] = num_refined_[t / static_cast<size_t>(kTokenTile)]++;
    }
    const auto tile = std::find_if(num_refined_.begin(), num_refined_.end(), [](int32_t count) { return count > 0; });
    first_refined_tile_ = static_cast<int32_t>(tile - num_refined_.begin()) * kTokenTile;
    max_refined_ = static_cast<size_t>(*std::max_element(num_refined_.begin(), num_refined_.end()));
    if (max_refined_ == 0) return;
    sums_.reserve(sums_at(static_cast<int32_t>(own_.size()), 0));
    for (Own& own : own_) {
        const auto words = static_cast<size_t>(mark_words(static_cast<int32_t>(own.inputs.size())));
        own.values.reserve(max_refined_ * own.inputs.size());
        own.marks.reserve(max_refined_ * words);
        own.any.reserve(words);
        own.list.reserve(own.inputs.size());
        own.executed = {};
    }
}

void InputStage::run(const FfnWeights& ffn, const TokenTile& tile, Activations& x, CascadeCounts& counts) {
    Own& own = own_[static_cast<size_t>(tile.thread)];
    const auto num_own = static_cast<int32_t>(own.inputs.size());
    const int32_t num_refined = num_refined_[static_cast<size_t>(tile.first / kTokenTile)];
    for (int32_t token = tile.first; token < tile.first + tile.count; ++token) {
        if (places_[static_cast<size_t>(token)] >= 0) choose(own, tile, token, x.values(token), counts);
    }
    const NeuronRange kept = narrow(own, tile, num_refined);
    float* to = sums_.data() + sums_at(tile.thread, 0);
    const auto stride = static_cast<size_t>(ffn.inputs.hidden_padded);
    std::fill_n(to, static_cast<size_t>(num_refined) * stride, 0.0f);
    kernels_.accumulate_down(ffn.inputs, kept.index, kept.count, own.values.data(), static_cast<size_t>(num_own),
                             num_refined, to, stride);
    if (tile.first != first_refined_tile_) return;
    own.executed.inputs += kept.count;
    own.executed.input_groups += count_groups(kept);
    own.executed.input_layers += tile.thread == 0 ? 1 : 0;
}

// The token's own values, 0 where its scores are too low, and marks of the others.
void InputStage::choose(Own& own, const TokenTile& tile, int32_t token, const float* x, CascadeCounts& counts) {
    const auto place = static_cast<ptrdiff_t>(places_[static_cast<size_t>(token)]);
    const auto num_own = static_cast<int32_t>(own.inputs.size());
    float* values = own.values.data() + place * num_own;
    for (int32_t i = 0; i < num_own; i += kGroup) {
        std::memcpy(values + i, x + own.inputs[static_cast<size_t>(i)],
                    sizeof(float) * static_cast<size_t>(std::min(kGroup, num_own - i)));
    }
    uint32_t* marks = own.marks.data() + place * mark_words(num_own);
    mark_first(num_own, marks);
    const RefinedToken& refined = tokens_[static_cast<size_t>(token)];
    const LayerRefinement& refinement =
        (*token_plans_[static_cast<size_t>(token)])[static_cast<size_t>(tile.layer)].refinement();
    kernels_.drop_below(values, refinement.input_weights, own.inputs.data(), refined.scale * refinement.input_threshold,
                        num_own, marks);
    kernels_.clear_unmarked(marks, num_own, values);
    const int32_t num_kept = kernels_.gather_marked(marks, num_own, own.inputs.data(), own.list.data());
    counts.note(refined.row, tile.layer, CascadeCounts::inputs, {own.list.data(), num_kept}, tile.thread);
}

// The inputs that some token of the tile keeps, with all tokens' values moved along; or all, unmoved, where that is
// faster. Only a step of one tile is narrowed, so that all its tokens execute the same.
NeuronRange InputStage::narrow(Own& own, const TokenTile& tile, int32_t num_refined) const {
    const auto num_own = static_cast<int32_t>(own.inputs.size());
    const NeuronRange all{own.inputs.data(), num_own};
    if (tile.count < static_cast<int32_t>(tokens_.size())) return all;
    uint32_t* any = own.any.data();
    const int32_t num_wanted = unite_marks(own.marks.data(), mark_words(num_own), num_refined, num_own, any);
    if (choice_.all_inputs(num_wanted, num_own)) return all;
    float* values = own.values.data();
    for (int32_t t = 0; t < num_refined; ++t, values += num_own) kernels_.gather_marked(any, num_own, values, values);
    return {own.list.data(), kernels_.gather_marked(any, num_own, own.inputs.data(), own.list.data())};
}

size_t InputStage::sums_at(int32_t thread, int32_t place) const {
    const size_t row = static_cast<size_t>(thread) * max_refined_ + static_cast<size_t>(place);
    return row * 2 * static_cast<size_t>(neurons_padded_);
}

void InputStage::gather(int32_t token, const NeuronRange& neurons, float* gate, float* up) const {
    gather_part(token, 0, neurons, gate);
    gather_part(token, static_cast<size_t>(neurons_padded_), neurons, up);
}

void InputStage::gather_part(int32_t token, size_t part, const NeuronRange& neurons, float* to) const {
    std::fill_n(to, neurons.count, 0.0f);
    const bool gaps = neurons.index[neurons.count - 1] - neurons.index[0] != neurons.count - 1;
    for (size_t thread = 0; thread < own_.size(); ++thread) {
        const size_t at = sums_at(static_cast<int32_t>(thread), places_[static_cast<size_t>(token)]);
        const float* from = sums_.data() + at + part;
        if (gaps) {
            add_gathered(to, from, neurons.index, neurons.count);
        } else {
            add(to, from + neurons.index[0], neurons.count);
        }
    }
}

FfnParts InputStage::executed() const {
    FfnParts sum;
    for (const Own& own : own_) sum.add(own.executed);
    return sum;
}

}  // namespace glass
