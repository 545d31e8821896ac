// The turns of a step that has refined rows, after the input stage: u, then gate, then down, each for what some row of
// the tile still wants.
#include <cstring>

#include "ffn.h"

namespace glass {

// Rows that are not refined take part with the neurons of their plan.
void FfnStep::run_cascade(const FfnWeights& ffn, const Turn& turn, const Tile& tile, Activations& x) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& walked = turn.neurons;
    const auto width = static_cast<size_t>(turn.width());
    float *gate = scratch.gate.data(), *up = scratch.up.data();
    multiply_up(ffn, turn, tile, x);
    choose_gates(ffn, turn, tile);
    const NeuronRange gated = narrow(turn, tile, walked, up, scratch.gate_list.data());
    kernels_.dot_rows(ffn.gate, gated.index, 0, gated.count, x.view(tile.first, tile.count), gate, width);
    choose_outputs(ffn, turn, tile, gated);
    const NeuronRange summed = narrow(turn, tile, gated, gate, scratch.down_list.data());
    kernels_.accumulate_down(ffn.down, summed.index, summed.count, gate, width, tile.count,
                             partial_row(tile.thread, tile.first), static_cast<size_t>(hidden_padded_));
    count_executed(tile, walked.count, gated.count, summed);
}

// u of all tokens: of refined ones from the input stage, of runs of others from up's rows.
void FfnStep::multiply_up(const FfnWeights& ffn, const Turn& turn, const Tile& tile, Activations& x) {
    float* up = scratch_[static_cast<size_t>(tile.thread)].up.data();
    const NeuronRange& walked = turn.neurons;
    const auto refined = [&](int32_t t) { return refined_[static_cast<size_t>(tile.first + t)].row >= 0; };
    for (int32_t t = 0, count = 1; t < tile.count; t += count, count = 1) {
        float* to = up + static_cast<ptrdiff_t>(t) * turn.width();
        if (refined(t)) {
            inputs_.gather(tile.first + t, walked, to);
            continue;
        }
        while (t + count < tile.count && !refined(t + count)) ++count;
        kernels_.dot_rows(ffn.up, walked.index, 0, walked.count, x.view(tile.first + t, count), to,
                          static_cast<size_t>(turn.width()));
    }
}

// Marks what every token wants to be computed further, from its plan and u.
void FfnStep::choose_gates(const FfnWeights& ffn, const Turn& turn, const Tile& tile) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    const NeuronRange& walked = turn.neurons;
    for (int32_t t = 0; t < tile.count; ++t) {
        const auto token = static_cast<size_t>(tile.first + t);
        float* up = scratch.up.data() + static_cast<ptrdiff_t>(t) * turn.width();
        uint32_t* marks = scratch.marks.data() + static_cast<ptrdiff_t>(t) * turn.mark_words();
        if (ffn.up_bias != nullptr) add_gathered(up, ffn.up_bias, walked.index, walked.count);
        const LayerPlan& own = (*token_plans_[token])[static_cast<size_t>(tile.layer)];
        mark_listed(walked.index, own.words(), walked.count, marks);
        if (refined_[token].row < 0) continue;
        const LayerRefinement& refinement = own.refinement();
        kernels_.drop_below(up, refinement.up_weights, walked.index,
                            refined_[token].scale * refinement.up_threshold, walked.count, marks);
        int32_t* kept = scratch.gate_list.data();
        const int32_t num_kept = kernels_.gather_marked(marks, walked.count, walked.index, kept);
        cascades_.note(refined_[token].row, tile.layer, CascadeCounts::gate, {kept, num_kept}, tile.thread);
    }
}

// z of every token, in place of its gate; 0 and unmarked where it is not to reach the down projection.
void FfnStep::choose_outputs(const FfnWeights& ffn, const Turn& turn, const Tile& tile, const NeuronRange& gated) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    for (int32_t t = 0; t < tile.count; ++t) {
        const auto token = static_cast<size_t>(tile.first + t);
        const ptrdiff_t at = static_cast<ptrdiff_t>(t) * turn.width();
        float *gate = scratch.gate.data() + at, *up = scratch.up.data() + at;
        uint32_t* marks = scratch.marks.data() + static_cast<ptrdiff_t>(t) * turn.mark_words();
        if (ffn.gate_bias != nullptr) add_gathered(gate, ffn.gate_bias, gated.index, gated.count);
        const CollectedToken& collected = collected_[token];  // a dense token keeps all, so nothing was left out
        if (collected.gates >= 0) collect(turn, gate, gates_.data() + place(collected.gates));
        gated_activation(shape_.activation, gate, up, gated.count);
        if (refined_[token].row >= 0) {
            const LayerRefinement& refinement =
                (*token_plans_[token])[static_cast<size_t>(tile.layer)].refinement();
            kernels_.drop_below(gate, refinement.down_weights, gated.index,
                                refined_[token].scale * refinement.down_threshold, gated.count, marks);
            int32_t* kept = scratch.down_list.data();
            const int32_t num_kept = kernels_.gather_marked(marks, gated.count, gated.index, kept);
            cascades_.note(refined_[token].row, tile.layer, CascadeCounts::down, {kept, num_kept}, tile.thread);
        }
        kernels_.clear_unmarked(marks, gated.count, gate);
        if (collected.z >= 0) collect(turn, gate, z_.data() + place(collected.z));
    }
}

// The neurons that some token of the tile has marked, with all tokens' values and marks moved along; or all of `from`,
// unmoved, where that is faster. Only a step of one tile is narrowed, so that all its tokens execute the same.
NeuronRange FfnStep::narrow(const Turn& turn, const Tile& tile, const NeuronRange& from, float* values,
                            int32_t* list) {
    Scratch& scratch = scratch_[static_cast<size_t>(tile.thread)];
    uint32_t *marks = scratch.marks.data(), *any = scratch.any.data();
    if (tile.count < num_tokens_) return from;
    const int32_t num_words = mark_words(from.count);
    std::memcpy(any, marks, sizeof(uint32_t) * static_cast<size_t>(num_words));
    for (int32_t t = 1; t < tile.count; ++t) {
        for (int32_t i = 0; i < num_words; ++i) any[i] |= marks[t * turn.mark_words() + i];
    }
    if (choice_.all_neurons(num_tokens_, count_marks(any, from.count), from.count)) return from;
    const int32_t count = kernels_.gather_marked(any, from.count, from.index, list);
    for (int32_t t = 0; t < tile.count; ++t, values += turn.width(), marks += turn.mark_words()) {
        kernels_.gather_marked(any, from.count, values, values);
        gather_marks(any, from.count, marks);
    }
    return {list, count};
}

// Once per step, like everything that is read: later tiles execute the same.
void FfnStep::count_executed(const Tile& tile, int32_t num_up, int32_t num_gate, const NeuronRange& summed) {
    if (tile.first > 0) return;
    scratch_[static_cast<size_t>(tile.thread)].executed.add(
        {all_refined_ ? 0 : num_up, num_gate, summed.count, count_groups(summed)});
}

}  // namespace glass
