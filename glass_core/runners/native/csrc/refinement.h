// Token-level refinement: of the neurons of a plan's pool, a token reads only those that its own scores call for.
//
// The cascade of a token in a layer: of the inputs x, those with |x| * input_weight >= scale * input_threshold give gate and
// u; neurons of the pool with |z| * down_weight >= scale * down_threshold, z = act(gate) * u, reach the down projection. For
// all others z = 0, which contributes exactly nothing, so it does not matter what of them the token's batch-mates made the
// step compute. Scores that are not numbers are kept: the step then reports them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "model.h"
#include "plans.h"

namespace glass {

// Of one token: its place among the step's refined rows (-1 = its row is not refined), the factor on its thresholds.
struct RefinedToken {
    int32_t row = -1;
    float scale = 1.0f;
};

// What the cascades of one refined row take by themselves, summed over layers.
struct CascadeWork {
    int64_t weights = 0;  // multiplied, summed over its tokens
    int64_t bytes = 0;    // of the weights that one pass for all its tokens reads
};

// Marks, as the kernels take them: one bit per position.
constexpr int32_t mark_words(int32_t count) { return (count + 31) / 32; }

// Marks the first `count` positions.
void mark_first(int32_t count, uint32_t* marks);
// Marks the positions whose neurons `words` (bits by neuron) has.
void mark_listed(const int32_t* index, const uint32_t* words, int32_t count, uint32_t* marks);
// any = the positions that one of `num_rows` rows marks, whose marks lie `stride` words apart; returns how many.
int32_t unite_marks(const uint32_t* marks, int32_t stride, int32_t num_rows, int32_t count, uint32_t* any);

// What the refined rows of a step keep.
class CascadeCounts {
public:
    enum Stage : int32_t { inputs, down };

    CascadeCounts(const ModelShape& shape, int32_t num_threads);

    // Lay out a step.
    void plan(const std::vector<RefinedToken>& tokens);
    int32_t num_rows() const { return static_cast<int32_t>(row_tokens_.size()); }

    // Note what one token keeps of a layer's inputs or neurons, of all that the thread walks or group by group. Threads
    // own whole groups.
    void note(int32_t row, int32_t layer, Stage stage, const NeuronRange& kept, int32_t thread);

    // Of every refined row, after all layers have run.
    std::vector<CascadeWork> work(const ModelWeights& weights) const;

private:
    size_t parts_at(size_t row, size_t layer, size_t thread) const;
    size_t words_at(size_t row, size_t layer, Stage stage) const;
    FfnParts token_parts(size_t row, size_t layer) const;
    FfnParts pass_parts(size_t row, size_t layer) const;

    const ModelShape& shape_;
    size_t num_groups_;  // of inputs or of neurons, whichever are more
    size_t num_layers_;
    size_t num_threads_;
    std::vector<int64_t> row_tokens_;  // of every refined row, its tokens
    Buffer<FfnParts> parts_;    // (threads, rows, layers): summed over the row's tokens
    Buffer<uint32_t> words_;    // (rows, layers, stages, groups): one bit per input or neuron, of rows of several tokens
};

}  // namespace glass
