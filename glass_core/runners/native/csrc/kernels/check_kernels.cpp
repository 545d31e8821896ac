#include "check_kernels.h"

#include <algorithm>
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

bool downs_are_equal(const Kernels& kernels, Format format, bool coded_scales) {
    Numbers numbers;
    std::vector<uint8_t> packed(code_bytes(format, kHidden) * kNeurons);
    fill_codes(numbers, format, packed.data(), packed.size());
    std::vector<uint16_t> halves(2 * 2 * kHidden);
    for (uint16_t& half : halves) half = kHalves[numbers.below(3)];
    std::vector<uint8_t> scales(2 * halves.size());
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(numbers.within(3));
    if (!coded_scales) __builtin_memcpy(scales.data(), halves.data(), scales.size());
    std::vector<int32_t> index;
    for (int32_t i = 0; i < kNeurons; ++i) {
        if (i % 5 != 3) index.push_back(i);
    }
    const int32_t n = static_cast<int32_t>(index.size());
    const std::vector<float> z = whole_numbers(numbers, kTokens, n, kDownSteps, 600);
    const DownView down = {packed.data(), code_bytes(format, kHidden),       scales.data(), kHidden,
                           format,        coded_scales ? halves.data() : nullptr};
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

// 6 groups of keys and a rest; dimensions beyond a whole number of vectors and of scales; as many queries as share
// registers, and one more.
constexpr int32_t kKeys = 6 * kKeyLanes + 5, kHeadDim = 84, kPaddedDim = 96, kQueries = 7;
constexpr int32_t kKeyGroups = kKeys / kKeyLanes + 1, kKvScales = kHeadDim / kKvScaleDims + 1;

// Cached keys and values, whole numbers that both formats hold. The score of a key with `query`, a row of +-1, is one of
// 0 … -8, half of them 0: every other dimension makes up for the one before.
struct Cached {
    std::vector<float> query;
    std::vector<uint8_t> keys, values;
    std::vector<float> key_scales, value_scales;
    KeySpan span;

    explicit Cached(KvFormat format) : query(kPaddedDim) {
        Numbers numbers;
        const size_t width = format == KvFormat::int8 ? 1 : 2;
        keys.resize(width * kKeyGroups * kKeyLanes * kHeadDim);
        values.resize(width * kKeyGroups * kKeyLanes * kPaddedDim);
        key_scales.resize(kKeyGroups * kKeyLanes * kKvScales);
        value_scales.resize(key_scales.size());
        for (int32_t d = 0; d < kHeadDim; ++d) query[static_cast<size_t>(d)] = numbers.below(2) == 0 ? 1.0f : -1.0f;
        for (float& scale : key_scales) scale = 1.0f;  // of the last dimensions; those of the first follow
        for (float& scale : value_scales) scale = numbers.below(2) == 0 ? 0.5f : 2.0f;
        describe(format, width);
        for (int32_t j = 0; j < kKeys; ++j) fill(numbers, j);
    }

private:
    void describe(KvFormat format, size_t width) {
        span = {format, kHeadDim, kPaddedDim, kKeys, kKeyLanes, kPaddedDim, kKeyLanes, {}};
        for (size_t g = 0; g < kKeyGroups; ++g) {
            const size_t scales = g * kKeyLanes * kKvScales;
            span.groups[g] = {&keys[width * g * kKeyLanes * kHeadDim], &values[width * g * kKeyLanes * kPaddedDim],
                              &key_scales[scales], &value_scales[scales]};
        }
    }

    void fill(Numbers& numbers, int32_t j) {
        const int32_t group = j / kKeyLanes, lane = j % kKeyLanes;
        float scale = 1.0f;
        if (span.format == KvFormat::int8) {
            scale = numbers.below(2) == 0 ? 0.5f : 2.0f;
            key_scales[static_cast<size_t>(group * kKeyLanes * kKvScales + lane)] = scale;
        }
        const int32_t drawn = numbers.below(16) - 8, target = drawn < 0 ? drawn : 0;
        float score = 0.0f;
        for (int32_t d = 0; d < kHeadDim; ++d) {
            const float by = query[static_cast<size_t>(d)] * (d < kKvScaleDims ? scale : 1.0f);
            const float code = d % 2 == 0 ? static_cast<float>(2 * numbers.within(30))
                                          : ((d + 1 == kHeadDim ? static_cast<float>(target) : 0.0f) - score) / by;
            score += code * by;
            put_code(keys, (group * kHeadDim + d) * kKeyLanes + lane, code);
            put_code(values, j * kPaddedDim + d, static_cast<float>(numbers.within(100)));
        }
    }

    void put_code(std::vector<uint8_t>& codes, int32_t at, float value) const {
        const auto i = static_cast<size_t>(at);
        if (span.format == KvFormat::int8) {
            codes[i] = static_cast<uint8_t>(static_cast<int8_t>(value));
        } else {  // exact: up to 8 bits
            uint32_t bits;
            __builtin_memcpy(&bits, &value, sizeof bits);
            put(static_cast<uint16_t>(bits >> 16), codes.data() + 2 * i);
        }
    }
};

struct Attended {
    std::vector<float> out, largest, sums;

    // Queries that are the cached one times `scale`, times 1, 2 or 3.
    Attended(const Kernels& kernels, const Cached& cached, float scale, int32_t num_queries)
        : out(static_cast<size_t>(num_queries * kPaddedDim)) {
        constexpr KeyRange kSeen[kQueries] = {{0, kKeys - 1}, {-9, 40}, {17, 300}, {5, 4}, {33, 33}, {1, 95}, {-1, 99}};
        std::vector<float> q(out.size());
        for (size_t i = 0; i < q.size(); ++i) {
            q[i] = cached.query[i % kPaddedDim] * scale * static_cast<float>(1 + i / kPaddedDim % 3);
        }
        std::vector<SoftmaxState> states(static_cast<size_t>(num_queries));
        kernels.attend_span(cached.span, q.data(), kSeen, num_queries, out.data(), states.data());
        for (size_t i = 0; i < states.size(); ++i) {
            largest.push_back(states[i].largest);
            sums.push_back(states[i].sum);
            for (size_t d = kHeadDim; d < kPaddedDim; ++d) out[i * kPaddedDim + d] = 0.0f;  // nobody reads them
        }
    }
};

// Of as many queries as `actual` has.
bool is_equal(const std::vector<float>& actual, const std::vector<float>& expected) {
    return std::equal(actual.begin(), actual.end(), expected.begin());
}

bool is_close(const Attended& actual, const Attended& expected) {
    constexpr float kError = 1e-5f, kLargestValue = 200.0f;
    for (size_t i = 0; i < actual.out.size(); ++i) {
        const float sum = expected.sums[i / kPaddedDim];
        const float sum_error = __builtin_fabsf(actual.sums[i / kPaddedDim] - sum);
        const float error = __builtin_fabsf(actual.out[i] - expected.out[i]);
        // false for what is not a number
        if (!(sum_error <= kError * sum && error <= kError * kLargestValue * sum)) return false;
    }
    return true;
}

bool attends_alike(const Kernels& kernels, KvFormat format) {
    constexpr float kFar = 256.0f, kNear = 0.375f;
    const Cached cached(format);
    const Attended exact(kPortableKernels, cached, kFar, kQueries), expected(kPortableKernels, cached, kNear, kQueries);
    for (int32_t count = 1; count <= kQueries; ++count) {
        const Attended far(kernels, cached, kFar, count), near(kernels, cached, kNear, count);
        if (!is_equal(far.out, exact.out) || !is_equal(far.largest, exact.largest)) return false;
        if (!is_equal(far.sums, exact.sums) || !is_equal(near.largest, expected.largest)) return false;
        if (!is_close(near, expected)) return false;
    }
    return true;
}

// What the choice of neurons leaves: the marks, the values cleared without one, the marked ones gathered.
struct Chosen {
    std::vector<uint32_t> bits, gathered;
    std::vector<float> cleared;
    int32_t count;

    Chosen(const Kernels& drops, const Kernels& clears, const Kernels& gathers) {
        constexpr int32_t kNumbers = 2 * kGroup + 21;
        Numbers numbers;
        std::vector<float> weights(kNumbers);
        std::vector<int32_t> index;
        for (float& weight : weights) weight = static_cast<float>(numbers.below(4));
        for (int32_t i = 0; i < kNumbers; ++i) {
            if (i < kGroup || i % 5 != 3) index.push_back(i);
        }
        const auto n = static_cast<int32_t>(index.size());
        cleared = whole_numbers(numbers, 1, n, 60, 50);
        bits.resize(static_cast<size_t>(n + kGroup - 1) / kGroup, 0xfffbffffu);
        drops.drop_below(cleared.data(), weights.data(), index.data(), 40.0f, n, bits.data());
        clears.clear_unmarked(bits.data(), n, cleared.data());
        gathered.resize(index.size());
        count = gathers.gather_marked(bits.data(), n, cleared.data(), gathered.data());
        gathered.resize(static_cast<size_t>(count));
    }
};

const char* find_choice_defect(const Kernels& kernels) {
    const Kernels& portable = kPortableKernels;
    const Chosen expected(portable, portable, portable), dropped(kernels, portable, portable);
    if (dropped.bits != expected.bits) return "drop_below";
    if (Chosen(portable, kernels, portable).cleared != expected.cleared) return "clear_unmarked";
    const Chosen gathered(portable, portable, kernels);
    return gathered.gathered != expected.gathered ? "gather_marked" : nullptr;
}

}  // namespace

const char* find_defect(const Kernels& kernels) {
    if (!quantizes_alike(kernels)) return "quantize";
    for (const Format format : {Format::q4, Format::q8, Format::bf16}) {
        if (!dots_are_equal(kernels, format)) return "dot_rows";
        if (!downs_are_equal(kernels, format, false)) return "accumulate_down";
    }
    if (!downs_are_equal(kernels, Format::q4, true)) return "accumulate_down";
    for (const KvFormat format : {KvFormat::bf16, KvFormat::int8}) {
        if (!attends_alike(kernels, format)) return "attend_span";
    }
    return find_choice_defect(kernels);
}

}  // namespace glass
