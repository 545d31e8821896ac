#include "refinement.h"

#include <algorithm>
#include <bit>
#include <cstring>

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
    const size_t num_words = rows_.size() * num_layers_ * kStages * num_groups_;
    const size_t num_counts = rows_.size() * num_threads_;
    if (rows_.empty()) return;
    std::memset(words_.reserve(num_words), 0, num_words * sizeof(uint32_t));
    std::memset(vectors_.reserve(num_counts), 0, num_counts * sizeof(int64_t));
}

void CascadeCounts::note(int32_t row, int32_t layer, Stage stage, const int32_t* index, const uint32_t* marks,
                         int32_t count, int32_t thread) {
    const auto r = static_cast<size_t>(row);
    uint32_t* kept = words_.data() + first_word(r, static_cast<size_t>(layer), stage);
    for (int32_t start = 0; start < count; start += 32) {
        if (whole_group(index + start, count - start)) {
            kept[index[start] / kGroup] |= marks[start / 32];
            continue;
        }
        for (uint32_t word = marks[start / 32]; word != 0; word &= word - 1) {
            const int32_t neuron = index[start + std::countr_zero(word)];
            kept[neuron / kGroup] |= uint32_t{1} << (neuron % kGroup);
        }
    }
    vectors_.data()[static_cast<size_t>(thread) * rows_.size() + r] += count_marks(marks, count);
}

size_t CascadeCounts::first_word(size_t row, size_t layer, Stage stage) const {
    return ((row * num_layers_ + layer) * kStages + static_cast<size_t>(stage)) * num_groups_;
}

int64_t CascadeCounts::row_bytes(size_t row, const ModelWeights& weights) const {
    int64_t bytes = 0;
    for (size_t layer = 0; layer < num_layers_; ++layer) {
        const FfnWeights& ffn = weights.layers[layer].ffn;
        const uint32_t* gates = words_.data() + first_word(row, layer, gate);
        const uint32_t* downs = words_.data() + first_word(row, layer, down);
        FfnParts parts{(*rows_[row].plan)[layer].count(), 0, 0, 0};
        for (size_t group = 0; group < num_groups_; ++group) {
            parts.gate += std::popcount(gates[group]);
            parts.down += std::popcount(downs[group]);
            parts.down_groups += downs[group] != 0;
        }
        bytes += parts.bytes(ffn);
    }
    return bytes;
}

std::vector<CascadeWork> CascadeCounts::work(const ModelWeights& weights) const {
    std::vector<CascadeWork> works;
    for (size_t row = 0; row < rows_.size(); ++row) {
        CascadeWork work{0, row_bytes(row, weights)};
        for (const LayerPlan& pool : *rows_[row].plan) work.vectors += rows_[row].num_tokens * pool.count();
        for (size_t thread = 0; thread < num_threads_; ++thread) {
            work.vectors += vectors_.data()[thread * rows_.size() + row];
        }
        works.push_back(work);
    }
    return works;
}

}  // namespace glass
