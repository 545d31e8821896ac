#include "plans.h"

#include <bit>
#include <numeric>
#include <stdexcept>
#include <string>

#include "elementwise.h"

namespace glass {

ChunkLayout::ChunkLayout(int32_t intermediate_size, int32_t num_threads)
    : num_groups_((intermediate_size + kGroup - 1) / kGroup), num_threads_(num_threads) {
    const int32_t groups_per_thread = (num_groups_ + num_threads - 1) / num_threads;
    chunks_per_thread_ = (groups_per_thread + kGroupsPerChunk - 1) / kGroupsPerChunk;
}

LayerPlan::LayerPlan(const ChunkLayout& layout, int32_t intermediate_size, const int32_t* neurons, size_t count)
    : words_(static_cast<size_t>(layout.num_groups())) {
    int32_t previous = -1;
    for (size_t i = 0; i < count; ++i) {
        const int32_t neuron = neurons[i];
        if (neuron <= previous || neuron >= intermediate_size) {
            throw std::invalid_argument("a plan's neurons must ascend within [0, " + std::to_string(intermediate_size) +
                                        "), got " + std::to_string(neuron) + " after " + std::to_string(previous));
        }
        previous = neuron;
        words_[static_cast<size_t>(neuron / kGroup)] |= uint32_t{1} << (neuron % kGroup);
    }
    order_.resize(count);
    offsets_.push_back(0);
    for (int32_t chunk = 0; chunk < layout.num_chunks(); ++chunk) {
        offsets_.push_back(offsets_.back() + expand(layout, words_.data(), chunk, order_.data() + offsets_.back()).count);
    }
}

GLASS_CLONES int32_t count_groups(const NeuronRange& neurons) {
    int32_t groups = neurons.count > 0 ? 1 : 0;
    for (int32_t i = 1; i < neurons.count; ++i) {
        groups += neurons.index[i] / kGroup != neurons.index[i - 1] / kGroup ? 1 : 0;
    }
    return groups;
}

NeuronRange expand(const ChunkLayout& layout, const uint32_t* words, int32_t chunk, int32_t* out) {
    int32_t count = 0;
    layout.for_groups(chunk, [&](int32_t group) {
        for (uint32_t word = words[group]; word != 0; word &= word - 1) {
            out[count++] = group * kGroup + std::countr_zero(word);
        }
    });
    return {out, count};
}

PlanStore::PlanStore(const ModelShape& shape, int32_t num_threads)
    : num_layers_(shape.num_layers),
      hidden_size_(shape.hidden_size),
      intermediate_size_(shape.intermediate_size),
      layout_(shape.intermediate_size, num_threads) {
    std::vector<int32_t> all(static_cast<size_t>(intermediate_size_));
    std::iota(all.begin(), all.end(), 0);
    // one layer's lists serve all layers, but a Plan has one entry a layer: the copies are small
    dense_.assign(static_cast<size_t>(num_layers_), LayerPlan(layout_, intermediate_size_, all.data(), all.size()));
}

void PlanStore::add(int32_t key, const std::vector<NeuronRange>& lists, const PlanRefinement& refinement) {
    if (key < 0 || plans_.contains(key)) throw std::invalid_argument("plan key " + std::to_string(key) + " is in use");
    if (static_cast<int32_t>(lists.size()) != num_layers_) {
        throw std::invalid_argument("the plan has " + std::to_string(lists.size()) + " layers, the model " +
                                    std::to_string(num_layers_));
    }
    Plan plan;
    for (const NeuronRange& list : lists) {
        plan.emplace_back(layout_, intermediate_size_, list.index, static_cast<size_t>(list.count));
    }
    for (size_t layer = 0; refinement.up_weights != nullptr && layer < plan.size(); ++layer) {
        plan[layer].refine(layer_of(refinement, layer));
    }
    plans_.emplace(key, std::move(plan));
}

LayerRefinement PlanStore::layer_of(const PlanRefinement& refinement, size_t layer) const {
    const auto num_layers = static_cast<size_t>(num_layers_);
    const size_t neurons = layer * static_cast<size_t>(intermediate_size_);
    return {refinement.input_weights + layer * static_cast<size_t>(hidden_size_),
            refinement.up_weights + neurons,
            refinement.down_weights + neurons,
            refinement.thresholds[layer],
            refinement.thresholds[num_layers + layer],
            refinement.thresholds[2 * num_layers + layer]};
}

const Plan& PlanStore::get(int32_t key) const {
    if (key == -1) return dense_;
    const auto found = plans_.find(key);
    if (found == plans_.end()) throw std::invalid_argument("no plan with key " + std::to_string(key));
    return found->second;
}

}  // namespace glass
