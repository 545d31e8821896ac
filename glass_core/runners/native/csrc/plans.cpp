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

namespace {

// The first place whose neuron does not ascend within [0, intermediate_size); `count` = there is none.
size_t find_misplaced(int32_t intermediate_size, const int32_t* neurons, size_t count) {
    if (count == 0) return 0;
    bool ascending = neurons[0] >= 0 && neurons[count - 1] < intermediate_size;
    for (size_t i = 1; i < count; ++i) ascending &= neurons[i] > neurons[i - 1];
    if (ascending) return count;
    size_t place = 0;
    for (int32_t previous = -1; neurons[place] > previous && neurons[place] < intermediate_size; ++place) {
        previous = neurons[place];
    }
    return place;
}

}  // namespace

LayerPlan::LayerPlan(const ChunkLayout& layout, int32_t intermediate_size, const int32_t* neurons, size_t count)
    : words_(static_cast<size_t>(layout.num_groups())) {
    const size_t misplaced = find_misplaced(intermediate_size, neurons, count);
    if (misplaced < count) {
        const int32_t previous = misplaced == 0 ? -1 : neurons[misplaced - 1];
        throw std::invalid_argument("a plan's neurons must ascend within [0, " + std::to_string(intermediate_size) +
                                    "), got " + std::to_string(neurons[misplaced]) + " after " +
                                    std::to_string(previous));
    }
    // a group's word is put together before it is stored: neighbours would wait for each other's bits in memory
    std::vector<const int32_t*> ends(words_.size());
    const int32_t* next = neurons;
    const int32_t* const end = neurons + count;
    for (size_t group = 0; group < words_.size(); ++group) {
        const auto limit = static_cast<int32_t>(group + 1) * kGroup;
        uint32_t word = 0;
        for (; next != end && *next < limit; ++next) word |= uint32_t{1} << (*next % kGroup);
        words_[group] = word;
        ends[group] = next;
        num_groups_ += word != 0 ? 1 : 0;
    }
    order_.reserve(count);
    offsets_.reserve(static_cast<size_t>(layout.num_chunks()) + 1);
    offsets_.push_back(0);
    for (int32_t chunk = 0; chunk < layout.num_chunks(); ++chunk) {
        layout.for_groups(chunk, [&](int32_t group) {
            const auto g = static_cast<size_t>(group);
            order_.insert(order_.end(), group == 0 ? neurons : ends[g - 1], ends[g]);
        });
        offsets_.push_back(static_cast<int32_t>(order_.size()));
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

const Plan& PlanStore::add(int32_t key, const std::vector<NeuronRange>& lists, const PlanRefinement& refinement) {
    if (key < 0 || plans_.contains(key)) throw std::invalid_argument("plan key " + std::to_string(key) + " is in use");
    if (static_cast<int32_t>(lists.size()) != num_layers_) {
        throw std::invalid_argument("the plan has " + std::to_string(lists.size()) + " layers, the model " +
                                    std::to_string(num_layers_));
    }
    Plan plan;
    plan.reserve(lists.size());
    for (const NeuronRange& list : lists) {
        plan.emplace_back(layout_, intermediate_size_, list.index, static_cast<size_t>(list.count));
    }
    for (size_t layer = 0; refinement.down_weights != nullptr && layer < plan.size(); ++layer) {
        plan[layer].refine(layer_of(refinement, layer));
    }
    return plans_.emplace(key, std::move(plan)).first->second;
}

LayerRefinement PlanStore::layer_of(const PlanRefinement& refinement, size_t layer) const {
    const auto num_layers = static_cast<size_t>(num_layers_);
    return {refinement.input_weights + layer * static_cast<size_t>(hidden_size_),
            refinement.down_weights + layer * static_cast<size_t>(intermediate_size_), refinement.thresholds[layer],
            refinement.thresholds[num_layers + layer]};
}

const Plan& PlanStore::get(int32_t key) const {
    if (key == -1) return dense_;
    const auto found = plans_.find(key);
    if (found == plans_.end()) throw std::invalid_argument("no plan with key " + std::to_string(key));
    return found->second;
}

}  // namespace glass
