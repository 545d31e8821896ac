#include "refinement.h"

#include <algorithm>
#include <bit>

namespace glass {
namespace {

constexpr size_t kStages = 2;

// Whether `index` lists the 32 neurons of one group in order.
bool whole_group(const int32_t* index, int32_t left) {
    return left >= kGroup && index[0] % kGroup == 0 && index[kGroup - 1] == index[0] + kGroup - 1;
}

// Calls fn(position) for the marked ones, ascending.
template <typename Fn>
void for_marked(const uint32_t* marks, int32_t count, Fn&& fn) {
    for (int32_t start = 0; start < count; start += 32) {
        for (uint32_t word = marks[start / 32]; word != 0; word &= word - 1) fn(start + std::countr_zero(word));
    }
}

// Marks the first `count` positions.
void mark_first(int32_t count, uint32_t* marks) {
    std::fill_n(marks, count / 32, ~uint32_t{0});
    if (count % 32 != 0) marks[count / 32] = (uint32_t{1} << (count % 32)) - 1;
}

}  // namespace

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

void gather_marks(const uint32_t* chosen, int32_t count, uint32_t* marks) {
    if (std::equal(chosen, chosen + mark_words(count), marks)) return mark_first(count_marks(chosen, count), marks);
    int32_t to = 0;
    uint32_t word = 0;
    for_marked(chosen, count, [&](int32_t from) {
        word |= ((marks[from / 32] >> (from % 32)) & 1u) << (to % 32);
        if (++to % 32 != 0) return;
        marks[to / 32 - 1] = word;  // from >= to: what it replaces has been read
        word = 0;
    });
    if (to % 32 != 0) marks[to / 32] = word;
}

int32_t count_marks(const uint32_t* marks, int32_t count) {
    int32_t sum = 0;
    for (int32_t i = 0; i < mark_words(count); ++i) sum += std::popcount(marks[i]);
    return sum;
}

CascadeCounts::CascadeCounts(const ModelShape& shape, int32_t num_threads)
    : num_groups_(static_cast<size_t>(shape.num_groups())),
      num_layers_(static_cast<size_t>(shape.num_layers)),
      num_threads_(static_cast<size_t>(num_threads)) {}

void CascadeCounts::plan(const std::vector<RefinedToken>& tokens, const std::vector<const Plan*>& token_plans) {
    rows_.clear();
    for (size_t t = 0; t < tokens.size(); ++t) {
        if (tokens[t].row < 0) continue;
        if (static_cast<size_t>(tokens[t].row) == rows_.size()) rows_.push_back({token_plans[t], 0});
        ++rows_.back().num_tokens;
    }
    if (rows_.empty()) return;
    const size_t num_parts = num_threads_ * rows_.size() * num_layers_;
    std::fill_n(parts_.reserve(num_parts), num_parts, FfnParts{});
    if (std::all_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.num_tokens == 1; })) return;
    const size_t num_words = rows_.size() * num_layers_ * kStages * num_groups_;
    std::fill_n(words_.reserve(num_words), num_words, 0u);
}

size_t CascadeCounts::parts_at(size_t row, size_t layer, size_t thread) const {
    return (thread * rows_.size() + row) * num_layers_ + layer;
}

size_t CascadeCounts::words_at(size_t row, size_t layer, Stage stage) const {
    return ((row * num_layers_ + layer) * kStages + static_cast<size_t>(stage)) * num_groups_;
}

void CascadeCounts::note(int32_t row, int32_t layer, Stage stage, const NeuronRange& kept, int32_t thread) {
    const auto r = static_cast<size_t>(row), l = static_cast<size_t>(layer);
    FfnParts& parts = parts_.data()[parts_at(r, l, static_cast<size_t>(thread))];
    (stage == gate ? parts.gate : parts.down) += kept.count;
    if (rows_[r].num_tokens == 1) {
        if (stage == down) parts.down_groups += count_groups(kept);
        return;
    }
    uint32_t* words = words_.data() + words_at(r, l, stage);
    for (int32_t i = 0; i < kept.count; ++i) words[kept.index[i] / kGroup] |= uint32_t{1} << (kept.index[i] % kGroup);
}

// Of the row's tokens, each by itself.
FfnParts CascadeCounts::token_parts(size_t row, size_t layer) const {
    FfnParts sum{rows_[row].num_tokens * (*rows_[row].plan)[layer].count(), 0, 0, 0};
    for (size_t thread = 0; thread < num_threads_; ++thread) {
        const FfnParts& parts = parts_.data()[parts_at(row, layer, thread)];
        sum.gate += parts.gate;
        sum.down += parts.down;
        sum.down_groups += parts.down_groups;
    }
    return sum;
}

// What one pass for all tokens of the row takes of a layer.
FfnParts CascadeCounts::pass_parts(size_t row, size_t layer) const {
    FfnParts sum = token_parts(row, layer);
    if (rows_[row].num_tokens == 1) return sum;
    const uint32_t* gates = words_.data() + words_at(row, layer, gate);
    const uint32_t* downs = words_.data() + words_at(row, layer, down);
    sum = {(*rows_[row].plan)[layer].count(), 0, 0, 0};
    for (size_t group = 0; group < num_groups_; ++group) {
        sum.gate += std::popcount(gates[group]);
        sum.down += std::popcount(downs[group]);
        sum.down_groups += downs[group] != 0;
    }
    return sum;
}

std::vector<CascadeWork> CascadeCounts::work(const ModelWeights& weights) const {
    std::vector<CascadeWork> works;
    for (size_t row = 0; row < rows_.size(); ++row) {
        CascadeWork work;
        for (size_t layer = 0; layer < num_layers_; ++layer) {
            work.vectors += token_parts(row, layer).vectors();
            work.bytes += pass_parts(row, layer).bytes(weights.layers[layer].ffn);
        }
        works.push_back(work);
    }
    return works;
}

}  // namespace glass
