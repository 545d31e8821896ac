#include "check_kernels.h"

#include <utility>
#include <vector>

#include "tables.h"

namespace glass {
namespace {

// Two blocks of groups' worth of everything: a whole block of 16 groups and a rest, more than a tile of rows, a whole
// and a part of a group of neurons, a wide and a narrow block of outputs.
constexpr int32_t kCols = 20 * kGroup, kRows = 18, kTokens = 9;
constexpr int32_t kNeurons = kGroup + 9, kHidden = 3 * kChunk;
// of the first tokens, how many to compute at a time: each way to compute several
constexpr int32_t kBatches[] = {1, 5, kTokens};

// The same numbers on every machine (Numerical Recipes' generator).
class Numbers {
public:
    int32_t below(int32_t n) {
        state_ = state_ * 1664525u + 1013904223u;
        return static_cast<int32_t>((state_ >> 8) % static_cast<uint32_t>(n));
    }
    int32_t within(int32_t bound) { return below(2 * bound + 1) - bound; }

private:
    uint32_t state_ = 1;
};

constexpr uint16_t kHalves[] = {0x3c00, 0x4000, 0xbc00};   // float16 1, 2, -1
constexpr uint16_t kBf16[] = {0x3f80, 0x4000, 0xc040, 0};  // bfloat16 1, 2, -3, 0

size_t code_bytes(Format format, int32_t cols) {
    return static_cast<size_t>(format == Format::q4 ? cols / 2 : (format == Format::q8 ? cols : 2 * cols));
}

void put(uint16_t value, uint8_t* to) { __builtin_memcpy(to, &value, sizeof value); }

void fill_codes(Numbers& numbers, Format format, uint8_t* codes, size_t size) {
    for (size_t i = 0; format != Format::bf16 && i < size; ++i) codes[i] = static_cast<uint8_t>(numbers.below(256));
    for (size_t i = 0; format == Format::bf16 && i < size; i += 2) put(kBf16[numbers.below(4)], codes + i);
}

// Whole numbers, every 7th of them +-largest: quantizing a group is exact, with a scale of 1.
std::vector<float> whole_numbers(Numbers& numbers, int32_t rows, int32_t cols, int32_t largest, int32_t usual) {
    std::vector<float> values(static_cast<size_t>(rows) * static_cast<size_t>(cols));
    for (int32_t row = 0; row < rows; ++row) {
        float* to = values.data() + static_cast<size_t>(row) * static_cast<size_t>(cols);
        for (int32_t i = 0; i < cols; ++i) to[i] = static_cast<float>(numbers.within(usual));
        for (int32_t i = row % 7; i < cols; i += 7) to[i] = static_cast<float>(row % 2 == 0 ? largest : -largest);
    }
    return values;
}

// Values and what a table's `quantize` makes of them.
struct Activations {
    std::vector<float> values, scales, sums;
    std::vector<int8_t> codes;

    Activations(const Kernels& kernels, std::vector<float> from)
        : values(std::move(from)), scales(values.size() / kGroup), sums(scales.size()), codes(values.size()) {
        for (size_t at = 0; at < values.size(); at += kCols) {
            kernels.quantize(&values[at], kCols, kCols, &codes[at], &scales[at / kGroup], &sums[at / kGroup]);
        }
    }

    ActivationView first(int32_t count) const {
        return {values.data(), kCols, codes.data(), kCols, scales.data(), sums.data(), kCols / kGroup, count};
    }
};

bool quantizes_alike(const Kernels& kernels) {
    Numbers numbers;
    std::vector<float> values = whole_numbers(numbers, 3, kCols, 9000, 5000);
    for (size_t i = 0; i < values.size() / 2; ++i) values[i] *= 0.37f;
    for (size_t i = 0; i < kGroup; ++i) values[i] = 0.0f;
    const Activations actual(kernels, values), expected(kPortableKernels, values);
    return actual.codes == expected.codes && actual.scales == expected.scales && actual.sums == expected.sums;
}

bool dots_are_equal(const Kernels& kernels, Format format) {
    Numbers numbers;
    const size_t codes = code_bytes(format, kCols);
    const size_t num_scales = kCols / kGroup * (format == Format::q4 ? 2 : (format == Format::q8 ? 1 : 0));
    const size_t stride = codes + 2 * num_scales;
    std::vector<uint8_t> packed(stride * kRows);
    for (uint8_t* row = packed.data(); row != packed.data() + packed.size(); row += stride) {
        fill_codes(numbers, format, row, codes);
        for (size_t i = 0; i < num_scales; ++i) put(kHalves[numbers.below(3)], row + codes + 2 * i);
    }
    const RowsView rows = {packed.data(), stride, kCols, format};
    const Activations x(kPortableKernels, whole_numbers(numbers, kTokens, kCols, 127, 127));
    std::vector<float> expected(kTokens * kRows);
    kPortableKernels.dot_rows(rows, nullptr, 0, kRows, x.first(kTokens), expected.data(), kRows);
    for (const int32_t count : kBatches) {
        std::vector<float> actual(expected);
        for (int32_t i = 0; i < count * kRows; ++i) actual[static_cast<size_t>(i)] = -1.0f;
        kernels.dot_rows(rows, nullptr, 0, kRows, x.first(count), actual.data(), kRows);
        if (actual != expected) return false;
    }
    return true;
}

bool downs_are_equal(const Kernels& kernels, Format format) {
    Numbers numbers;
    std::vector<uint8_t> packed(code_bytes(format, kHidden) * kNeurons);
    fill_codes(numbers, format, packed.data(), packed.size());
    std::vector<uint16_t> scales(2 * 2 * kHidden);
    for (uint16_t& scale : scales) scale = kHalves[numbers.below(3)];
    std::vector<int32_t> index;
    for (int32_t i = 0; i < kNeurons; ++i) {
        if (i % 5 != 3) index.push_back(i);
    }
    const int32_t n = static_cast<int32_t>(index.size());
    const std::vector<float> z = whole_numbers(numbers, kTokens, n, kDownSteps, 600);
    const DownView down = {packed.data(), code_bytes(format, kHidden), scales.data(), kHidden, format};
    const std::vector<float> start = whole_numbers(numbers, kTokens, kHidden, 50, 50);
    for (const int32_t count : kBatches) {
        std::vector<float> actual(start), expected(start);
        const size_t width = static_cast<size_t>(n);
        kPortableKernels.accumulate_down(down, index.data(), n, z.data(), width, count, expected.data(), kHidden);
        kernels.accumulate_down(down, index.data(), n, z.data(), width, count, actual.data(), kHidden);
        if (actual != expected) return false;
    }
    return true;
}

}  // namespace

const char* find_defect(const Kernels& kernels) {
    if (!quantizes_alike(kernels)) return "quantize";
    for (const Format format : {Format::q4, Format::q8, Format::bf16}) {
        if (!dots_are_equal(kernels, format)) return "dot_rows";
        if (!downs_are_equal(kernels, format)) return "accumulate_down";
    }
    return nullptr;
}

}  // namespace glass
