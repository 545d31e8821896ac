#include "refinement.h"

#include <algorithm>
#include <bit>

namespace glass {
namespace {

constexpr size_t kStages = 2;

// Whether `index`, which ascends and has `left` entries, begins with the 32 neurons of one group.
bool whole_group(const int32_t* index, int32_t left) {
    return left >= kGroup && index[0] % kGroup == 0 && index[kGroup - 1] == index[0] + kGroup - 1;
}

}  // namespace

void mark_first(int32_t count, uint32_t* marks) {
    std::fill_n(marks, count / 32, ~uint32_t{0});
    if (count % 32 != 0) marks[count / 32] = (uint32_t{1} << (count % 32)) - 1;
}

void mark_listed(const int32_t* index, const uint32_t* words, int32_t count, uint32_t* marks) {
    for (int32_t start = 0; start < count; start += 32) {
        if (whole_group(index + start, count - start)) {
            marks[start / 32] = words[index[start] / kGroup];
            continue;
        }
        uint32_t word = 0;
        for (int32_t i = start; i < std::min(start + 32, count); ++i) {
            word |= ((words[index[i] / kGroup] >> (index[i] % kGroup)) & 1u) << (i - start);
        }
        marks[start / 32] = word;
    }
}

int32_t unite_marks(const uint32_t* marks, int32_t stride, int32_t num_rows, int32_t count, uint32_t* any) {
    int32_t sum = 0;
    for (int32_t i = 0; i < mark_words(count); ++i) {
        uint32_t word = 0;
        for (int32_t row = 0; row < num_rows; ++row) word |= marks[row * stride + i];
        any[i] = word;
        sum += std::popcount(word);
    }
    return sum;
}

CascadeCounts::CascadeCounts(const ModelShape& shape, int32_t num_threads)
    : shape_(shape),
      num_groups_(static_cast<size_t>((std::max(shape.intermediate_size, shape.hidden_size) + kGroup - 1) / kGroup)),
      num_layers_(static_cast<size_t>(shape.num_layers)),
      num_threads_(static_cast<size_t>(num_threads)) {}

void CascadeCounts::plan(const std::vector<RefinedToken>& tokens) {
    row_tokens_.clear();
    for (const RefinedToken& token : tokens) {
        if (token.row < 0) continue;
        if (static_cast<size_t>(token.row) == row_tokens_.size()) row_tokens_.push_back(0);
        ++row_tokens_.back();
    }
    if (row_tokens_.empty()) return;
    const size_t num_parts = num_threads_ * row_tokens_.size() * num_layers_;
    std::fill_n(parts_.reserve(num_parts), num_parts, FfnParts{});
    if (std::all_of(row_tokens_.begin(), row_tokens_.end(), [](int64_t count) { return count == 1; })) return;
    const size_t num_words = row_tokens_.size() * num_layers_ * kStages * num_groups_;
    std::fill_n(words_.reserve(num_words), num_words, 0u);
}

size_t CascadeCounts::parts_at(size_t row, size_t layer, size_t thread) const {
    return (thread * row_tokens_.size() + row) * num_layers_ + layer;
}

size_t CascadeCounts::words_at(size_t row, size_t layer, Stage stage) const {
    return ((row * num_layers_ + layer) * kStages + static_cast<size_t>(stage)) * num_groups_;
}

void CascadeCounts::note(int32_t row, int32_t layer, Stage stage, const NeuronRange& kept, int32_t thread) {
    const auto r = static_cast<size_t>(row), l = static_cast<size_t>(layer);
    FfnParts& parts = parts_.data()[parts_at(r, l, static_cast<size_t>(thread))];
    (stage == inputs ? parts.inputs : parts.down) += kept.count;
    if (row_tokens_[r] == 1) {
        (stage == inputs ? parts.input_groups : parts.down_groups) += count_groups(kept);
        return;
    }
    uint32_t* words = words_.data() + words_at(r, l, stage);
    for (int32_t i = 0; i < kept.count; ++i) words[kept.index[i] / kGroup] |= uint32_t{1} << (kept.index[i] % kGroup);
}

// Of the row's tokens, each by itself.
FfnParts CascadeCounts::token_parts(size_t row, size_t layer) const {
    FfnParts sum;
    for (size_t thread = 0; thread < num_threads_; ++thread) {
        sum.add(parts_.data()[parts_at(row, layer, thread)]);
    }
    return sum;
}

// What one pass for all tokens of the row takes of a layer.
FfnParts CascadeCounts::pass_parts(size_t row, size_t layer) const {
    if (row_tokens_[row] == 1) return token_parts(row, layer);
    FfnParts sum;
    for (size_t group = 0; group < num_groups_; ++group) {
        const auto word = [&](Stage stage) { return words_.data()[words_at(row, layer, stage) + group]; };
        sum.inputs += std::popcount(word(inputs));
        sum.input_groups += word(inputs) != 0;
        sum.down += std::popcount(word(down));
        sum.down_groups += word(down) != 0;
    }
    return sum;
}

std::vector<CascadeWork> CascadeCounts::work(const ModelWeights& weights) const {
    std::vector<CascadeWork> works;
    for (size_t row = 0; row < row_tokens_.size(); ++row) {
        CascadeWork work;
        for (size_t layer = 0; layer < num_layers_; ++layer) {
            work.weights += token_parts(row, layer).weights(shape_);
            FfnParts pass = pass_parts(row, layer);
            pass.input_layers = 1;
            work.bytes += pass.bytes(weights.layers[layer].ffn);
        }
        works.push_back(work);
    }
    return works;
}

}  // namespace glass
