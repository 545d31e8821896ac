// Ranks of 32-bit keys by a radix sort of three digits, each as wide as the span of the keys needs: keys of one layer's
// statistics differ in some 27 bits.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace glass {

// The lowest and the highest of some keys.
struct KeySpan {
    uint32_t lowest;
    uint32_t highest;
};

class RadixRanks {
public:
    explicit RadixRanks(size_t size) : first_(size), second_(size) {}

    // Calls fn(index, rank) for each of the `size` keys: ranks ascend with the keys, and of two equal keys the one with
    // the lower index has the higher rank.
    template <typename Fn>
    void for_each(const uint32_t* keys, const KeySpan& span, Fn&& fn) {
        const size_t size = first_.size();
        const int width = (static_cast<int>(std::bit_width(span.highest - span.lowest)) + kDigits - 1) / kDigits;
        const uint32_t mask = (uint32_t{1} << width) - 1;
        // the distance to the highest key, so that the order is from the best down, and stable means lower index first
        count_digits(keys, span.highest, width);
        for (size_t i = 0; i < size; ++i) {
            const uint32_t distance = span.highest - keys[i];
            first_[places_[0][distance & mask]++] = {distance >> width, static_cast<uint32_t>(i)};
        }
        for (const Entry& entry : first_) second_[places_[1][entry.rest & mask]++] = {entry.rest >> width, entry.index};
        for (const Entry& entry : second_) fn(entry.index, size - 1 - places_[2][entry.rest]++);
    }

private:
    static constexpr int kDigits = 3;
    static constexpr size_t kMaxValues = size_t{1} << 11;  // of a digit of 32 bits
    struct Entry {
        uint32_t rest;  // the distance without the digits that were sorted by
        uint32_t index;
    };

    // places_[d][v]: how many keys have a digit d below v.
    void count_digits(const uint32_t* keys, uint32_t highest, int width) {
        const size_t num_values = size_t{1} << width;
        const uint32_t mask = static_cast<uint32_t>(num_values) - 1;
        for (auto& places : places_) std::fill_n(places.begin(), num_values, 0);
        for (size_t i = 0; i < first_.size(); ++i) {
            const uint32_t distance = highest - keys[i];
            ++places_[0][distance & mask];
            ++places_[1][distance >> width & mask];
            ++places_[2][distance >> width >> width];
        }
        for (auto& places : places_) {
            std::exclusive_scan(places.begin(), places.begin() + static_cast<ptrdiff_t>(num_values), places.begin(), 0u);
        }
    }

    std::vector<Entry> first_, second_;
    std::array<std::array<uint32_t, kMaxValues>, kDigits> places_;
};

}  // namespace glass
