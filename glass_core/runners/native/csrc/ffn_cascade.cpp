// The turns of a step that has refined rows, after the input stage: gate and u of every token, then down for what some row
// of the tile still wants.
#include "ffn.h"

namespace glass {

// Rows that are not refined take part with the neurons of their plan.
void FfnStep::run_cascade(const FfnWeights& ffn, const Turn& turn, const Tile& tile, Activations& x) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const auto width = static_cast<size_t>(turn.width());
    float* gate = scratch.gate.data();
    multiply(ffn, turn, tile, x);
    choose(ffn, turn, tile);
    const NeuronRange summed = narrow(turn, tile);
    kernels_.accumulate_down(ffn.down, summed.index, summed.count, gate, width, tile.count,
                             partial_row(tile.thread, tile.first), static_cast<size_t>(hidden_padded_));
    if (tile.first > 0) return;  // once per step, like everything that is read: later tiles execute the same
    scratch.executed.add({all_refined_ ? 0 : turn.neurons.count, summed.count, count_groups(summed)});
}

// Gate and u of all tokens: of refined ones from the input stage, of runs of others from their rows.
void FfnStep::multiply(const FfnWeights& ffn, const Turn& turn, const Tile& tile, Activations& x) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const auto refined = [&](int32_t t) { return refined_[static_cast<size_t>(tile.first + t)].row >= 0; };
    for (int32_t t = 0, count = 1; t < tile.count; t += count, count = 1) {
        if (refined(t)) {
            const ptrdiff_t at = static_cast<ptrdiff_t>(t) * turn.width();
            inputs_.gather(tile.first + t, turn.neurons, scratch.gate.data() + at, scratch.up.data() + at);
            continue;
        }
        while (t + count < tile.count && !refined(t + count)) ++count;
        multiply_rows(ffn, turn, tile, t, x.view(tile.first + t, count));
    }
}

// z of every token, in place of its gate, and marks of what is to reach the down projection; 0 elsewhere.
void FfnStep::choose(const FfnWeights& ffn, const Turn& turn, const Tile& tile) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& walked = turn.neurons;
    for (int32_t t = 0; t < tile.count; ++t) {
        const auto token = static_cast<size_t>(tile.first + t);
        float* z = multiply_gate(ffn, turn, tile, t);
        uint32_t* marks = scratch.marks.data() + static_cast<ptrdiff_t>(t) * turn.mark_words();
        const LayerPlan& own = (*token_plans_[token])[static_cast<size_t>(tile.layer)];
        mark_listed(walked.index, own.words(), walked.count, marks);
        if (refined_[token].row >= 0) {
            const LayerRefinement& refinement = own.refinement();
            kernels_.drop_below(z, refinement.down_weights, walked.index,
                                refined_[token].scale * refinement.down_threshold, walked.count, marks);
            int32_t* kept = scratch.down_list.data();
            const int32_t num_kept = kernels_.gather_marked(marks, walked.count, walked.index, kept);
            cascades_.note(refined_[token].row, tile.layer, CascadeCounts::down, {kept, num_kept}, tile.thread);
        }
        kernels_.clear_unmarked(marks, walked.count, z);
        // a dense token keeps all, so nothing was left out
        if (collected_[token] >= 0) collect(turn, static_cast<int32_t>(token), z);
    }
}

// The neurons that some token of the tile has marked, with all tokens' z moved along; or all that are walked, unmoved,
// where that is faster. Only a step of one tile is narrowed, so that all its tokens execute the same.
NeuronRange FfnStep::narrow(const Turn& turn, const Tile& tile) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& walked = turn.neurons;
    if (tile.count < num_tokens_) return walked;
    uint32_t* any = scratch.any.data();
    const int32_t num_wanted = unite_marks(scratch.marks.data(), turn.mark_words(), tile.count, walked.count, any);
    if (choice_.all_neurons(num_tokens_, num_wanted, walked.count)) return walked;
    float* z = scratch.gate.data();
    for (int32_t t = 0; t < tile.count; ++t, z += turn.width()) kernels_.gather_marked(any, walked.count, z, z);
    int32_t* list = scratch.down_list.data();
    return {list, kernels_.gather_marked(any, walked.count, walked.index, list)};
}

}  // namespace glass
