// Pruned views: a plan's neurons as index lists over the one weight image, nothing copied.
//
// Neurons are walked in groups of 32 that share down scales. Every thread owns groups that follow each other and walks
// them in ascending order, some chunks of kGroupsPerChunk at a time: a row's sums are then added in the same order
// whatever else is in the step.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "model.h"
#include "thread_pool.h"

namespace glass {

inline constexpr int32_t kGroupsPerChunk = 4;
inline constexpr int32_t kNeuronsPerChunk = kGroupsPerChunk * kGroup;

// Which groups of neurons each (thread, chunk) walks.
class ChunkLayout {
public:
    ChunkLayout(int32_t intermediate_size, int32_t num_threads);

    int32_t num_groups() const { return num_groups_; }
    int32_t chunks_per_thread() const { return chunks_per_thread_; }
    int32_t num_chunks() const { return num_threads_ * chunks_per_thread_; }
    int32_t chunk(int32_t thread, int32_t index) const { return thread * chunks_per_thread_ + index; }

    // Calls fn(group) for the groups of a chunk, ascending.
    template <typename Fn>
    void for_groups(int32_t chunk, Fn&& fn) const {
        const Share own = share(num_groups_, 1, chunk / chunks_per_thread_, num_threads_);
        const int32_t first = own.first + chunk % chunks_per_thread_ * kGroupsPerChunk;
        for (int32_t group = first; group < std::min(first + kGroupsPerChunk, own.last); ++group) fn(group);
    }

private:
    int32_t num_groups_;
    int32_t num_threads_;
    int32_t chunks_per_thread_;
};

struct NeuronRange {
    const int32_t* index;
    int32_t count;
};

// Of how many groups the listed neurons are; each group's follow each other.
int32_t count_groups(const NeuronRange& neurons);

// Scores and thresholds of a refined plan's layer (see refinement.h); the arrays, (hidden_size,) for inputs and else
// (intermediate_size,), are the caller's.
struct LayerRefinement {
    const float* input_weights = nullptr;
    const float* down_weights = nullptr;
    float input_threshold = 0.0f;
    float down_threshold = 0.0f;
};

// The same of all layers, one after the other: of each array, of inputs' thresholds and of down's; null = the plan is not
// refined.
struct PlanRefinement {
    const float* input_weights = nullptr;
    const float* down_weights = nullptr;
    const float* thresholds = nullptr;
};

// The kept neurons of one layer: a list in chunk order, and the same set as one word per group.
class LayerPlan {
public:
    // `neurons` ascend strictly and lie in [0, intermediate_size); throws std::invalid_argument otherwise.
    LayerPlan(const ChunkLayout& layout, int32_t intermediate_size, const int32_t* neurons, size_t count);

    // The neurons of `count` successive chunks of one thread.
    NeuronRange range(int32_t chunk, int32_t count) const {
        const auto first = static_cast<size_t>(chunk), last = first + static_cast<size_t>(count);
        return {order_.data() + offsets_[first], offsets_[last] - offsets_[first]};
    }
    const uint32_t* words() const { return words_.data(); }
    int32_t count() const { return static_cast<int32_t>(order_.size()); }
    // Of how many groups the neurons are.
    int32_t num_groups() const { return num_groups_; }

    void refine(const LayerRefinement& refinement) { refinement_ = refinement; }
    bool refined() const { return refinement_.down_weights != nullptr; }
    const LayerRefinement& refinement() const { return refinement_; }

private:
    std::vector<int32_t> order_;
    std::vector<int32_t> offsets_;
    std::vector<uint32_t> words_;
    int32_t num_groups_ = 0;
    LayerRefinement refinement_;
};

using Plan = std::vector<LayerPlan>;

// The neurons of a chunk that `words` has set, written to `out` (room for kNeuronsPerChunk).
NeuronRange expand(const ChunkLayout& layout, const uint32_t* words, int32_t chunk, int32_t* out);

// Plans by key, and the dense plan.
class PlanStore {
public:
    PlanStore(const ModelShape& shape, int32_t num_threads);

    // `lists[l]` are layer l's neurons. The arrays of the refinement must outlive the plan, which is valid until it is
    // removed. Throws std::invalid_argument for a key in use or a list that cannot be.
    const Plan& add(int32_t key, const std::vector<NeuronRange>& lists, const PlanRefinement& refinement = {});
    void remove(int32_t key) { plans_.erase(key); }

    // Throws std::invalid_argument for an unknown key. -1 is the dense plan.
    const Plan& get(int32_t key) const;
    const Plan& dense() const { return dense_; }
    const ChunkLayout& layout() const { return layout_; }

private:
    LayerRefinement layer_of(const PlanRefinement& refinement, size_t layer) const;

    int32_t num_layers_;
    int32_t hidden_size_;
    int32_t intermediate_size_;
    ChunkLayout layout_;
    Plan dense_;
    std::unordered_map<int32_t, Plan> plans_;
};

}  // namespace glass
