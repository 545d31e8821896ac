#include "selection.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <stdexcept>

#include "elementwise.h"

namespace glass {
namespace {

// Bins are as many as the scores, so that few share one, up to where walking over them takes longer than that.
constexpr size_t kMinBins = 2, kMaxBins = 512;

// Integers that compare as the values do; false when one of them is NaN or infinite. IEEE 754 bit patterns of positive
// numbers grow with the number, those of negative numbers shrink; the two zeros are one value.
GLASS_CLONES bool order_values(const float* values, size_t size, uint32_t* keys, KeySpan* span) {
    constexpr uint32_t kSign = uint32_t{1} << 31, kInfinity = 0x7f800000;
    uint32_t lowest = ~uint32_t{0}, highest = 0, largest = 0;
    for (size_t i = 0; i < size; ++i) {
        uint32_t bits = std::bit_cast<uint32_t>(values[i]);
        const uint32_t magnitude = bits & ~kSign;
        bits = magnitude == 0 ? 0 : bits;
        const uint32_t key = bits ^ ((0u - (bits >> 31)) | kSign);
        keys[i] = key;
        lowest = key < lowest ? key : lowest;
        highest = key > highest ? key : highest;
        largest = magnitude > largest ? magnitude : largest;
    }
    *span = {lowest, highest};
    return largest < kInfinity;
}

// The bins of the scores depend on it.
GLASS_CLONES bool are_ranks(const int32_t* ranks, size_t size) {
    const auto highest = static_cast<int32_t>(size - 1);
    int32_t signs = 0;
    for (size_t i = 0; i < size; ++i) signs |= ranks[i] | (ranks[i] < 0 ? -1 : highest - ranks[i]);
    return signs >= 0;
}

}  // namespace

NeuronSelection::NeuronSelection(int32_t num_neurons)
    : sort_(static_cast<size_t>(num_neurons)),
      keys_(static_cast<size_t>(num_neurons)),
      scores_(static_cast<size_t>(num_neurons)),
      bins_(std::clamp(std::bit_ceil(static_cast<size_t>(num_neurons)), kMinBins, kMaxBins)),
      candidates_(static_cast<size_t>(num_neurons)) {}

bool NeuronSelection::choose(const LayerEvidence& evidence, int32_t count, int32_t* out) {
    KeySpan span{0, 0};
    if (evidence.values != nullptr && !order_values(evidence.values, keys_.size(), keys_.data(), &span)) return false;
    if (evidence.model_ranks != nullptr && !are_ranks(evidence.model_ranks, keys_.size())) {
        throw std::invalid_argument("a rank of the model lies outside [0, number of neurons)");
    }
    if (count == 0) return true;
    score(evidence, span);
    write_kept(threshold(static_cast<size_t>(count)), static_cast<size_t>(count), out);
    return true;
}

void NeuronSelection::score(const LayerEvidence& evidence, const KeySpan& span) {
    const size_t size = scores_.size();
    const int32_t* model = evidence.model_ranks;
    if (model == nullptr) {
        for (size_t i = 0; i < size; ++i) scores_[i] = keys_[i] - span.lowest;
        highest_score_ = span.highest - span.lowest;
    } else if (evidence.values == nullptr) {
        for (size_t i = 0; i < size; ++i) scores_[i] = static_cast<uint64_t>(model[i]);
        highest_score_ = size - 1;
    } else {
        const auto prompt_weight = static_cast<uint64_t>(evidence.prompt_weight);
        const auto model_weight = static_cast<uint64_t>(evidence.model_weight);
        sort_.for_each(keys_.data(), span, [&](size_t neuron, size_t rank) {
            scores_[neuron] = prompt_weight * rank + model_weight * static_cast<uint64_t>(model[neuron]);
        });
        highest_score_ = (prompt_weight + model_weight) * (size - 1);
    }
}

NeuronSelection::Threshold NeuronSelection::threshold(size_t count) {
    const uint64_t last = bins_.size() - 1;
    const int excess = static_cast<int>(std::bit_width(highest_score_)) - static_cast<int>(std::bit_width(last));
    const int shift = std::max(excess, 0);
    std::fill(bins_.begin(), bins_.end(), 0);
    for (const uint64_t score : scores_) ++bins_[score >> shift & last];
    uint64_t bin = last;
    size_t left = count;
    for (; left > bins_[bin]; --bin) left -= bins_[bin];
    size_t found = 0;
    for (const uint64_t score : scores_) {
        candidates_[found] = score;
        found += (score >> shift & last) == bin ? 1 : 0;
    }
    const auto first = candidates_.begin(), kept = first + static_cast<ptrdiff_t>(left);
    std::nth_element(first, kept - 1, first + static_cast<ptrdiff_t>(found), std::greater<>());
    const uint64_t lowest = *(kept - 1);
    return {lowest, static_cast<size_t>(std::count(first, kept, lowest))};
}

void NeuronSelection::write_kept(const Threshold& lowest, size_t count, int32_t* out) const {
    size_t num_tied = lowest.num_tied;
    for (size_t neuron = 0, kept = 0; kept < count; ++neuron) {
        out[kept] = static_cast<int32_t>(neuron);
        if (scores_[neuron] == lowest.score) {  // rare
            if (num_tied == 0) continue;
            --num_tied;
        }
        kept += scores_[neuron] >= lowest.score ? 1 : 0;
    }
}

}  // namespace glass
