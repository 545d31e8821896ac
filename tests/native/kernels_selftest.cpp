// Compares every kernel table of this build and CPU with the portable one on random shapes, and a table that extends
// another one with that one, bit for bit; exits 1 at the first difference. For processors that the Python tests do not
// run on: built by a cross compiler and run by an emulator, or with a software model of the instructions.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

using namespace glass;

namespace {

std::mt19937 rng(1);

int below(int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); }

std::vector<float> random_floats(size_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float& value : values) value = below(10) == 0 ? 0.0f : normal(rng);
    return values;
}

// Positive float16 between 2^-10 and 2^-6: any bits would include infinities.
uint16_t random_half() { return static_cast<uint16_t>((5 + below(4)) << 10 | below(1024)); }

void expect(bool condition, const char* isa, const char* what) {
    if (condition) return;
    std::printf("%s: %s differs\n", isa, what);
    std::exit(1);
}

// Positive weights below 16 against values of size 1: rounding stays far below this.
void expect_close(const std::vector<float>& a, const std::vector<float>& b, const char* isa, const char* what) {
    for (size_t i = 0; i < a.size(); ++i) expect(std::abs(a[i] - b[i]) <= 1e-3f * (1 + std::abs(b[i])), isa, what);
}

// The table whose every bit `kernels` promises; nullptr where it promises none.
const Kernels* twin_of(const Kernels& kernels) {
    const std::string name = kernels.name;
    return find_kernels(name == "amx_int8" ? "avx512_vnni" : (name == "neon_i8mm" ? "neon_dotprod" : ""));
}

std::vector<int32_t> random_index(int32_t total) {
    std::vector<int32_t> index;
    for (int32_t i = 0; i < total; ++i) {
        if (below(3) > 0 || (i + 1 == total && index.empty())) index.push_back(i);
    }
    return index;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Activations {
    std::vector<float> values, scales, sums;
    std::vector<int8_t> codes;
    int32_t rows, cols;

    ActivationView view(int32_t first, int32_t count) const {
        const size_t row = static_cast<size_t>(cols), groups = row / kGroup, at = static_cast<size_t>(first);
        return {values.data() + at * row, row, codes.data() + at * row, row, scales.data() + at * groups,
                sums.data() + at * groups, groups, count};
    }
};

Activations quantize(const Kernels& kernels, const std::vector<float>& values, int32_t rows, int32_t cols) {
    const size_t size = values.size();
    Activations x{values, std::vector<float>(size / kGroup), std::vector<float>(size / kGroup),
                  std::vector<int8_t>(size), rows, cols};
    for (int32_t t = 0; t < rows; ++t) {
        kernels.quantize(&values[static_cast<size_t>(t) * cols], cols, cols, &x.codes[static_cast<size_t>(t) * cols],
                         &x.scales[static_cast<size_t>(t) * cols / kGroup],
                         &x.sums[static_cast<size_t>(t) * cols / kGroup]);
    }
    return x;
}

size_t code_bytes(Format format, int32_t cols) {
    return static_cast<size_t>(format == Format::q4 ? cols / 2 : (format == Format::q8 ? cols : 2 * cols));
}

std::vector<uint8_t> random_codes(Format format, size_t size) {
    std::vector<uint8_t> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(rng());
    // bfloat16 between 2^-7 and 2
    for (size_t i = 1; format == Format::bf16 && i < size; i += 2) bytes[i] = static_cast<uint8_t>(0x3c + below(4));
    return bytes;
}

void compare_dots(const Kernels& kernels, const Kernels& portable, Format format) {
    const int32_t cols = kChunk * (1 + below(20)), total = 1 + below(40), rows = 1 + below(20);
    const size_t codes = code_bytes(format, cols);
    const size_t scales = static_cast<size_t>(format == Format::q4 ? cols / 16 : (format == Format::q8 ? cols / 32 : 0));
    const size_t stride = codes + 2 * scales;
    std::vector<uint8_t> packed = random_codes(format, stride * static_cast<size_t>(total));
    for (int32_t i = 0; i < total; ++i) {
        for (size_t s = 0; s < scales; ++s) {
            const uint16_t half = random_half();
            __builtin_memcpy(&packed[static_cast<size_t>(i) * stride + codes + 2 * s], &half, 2);
        }
    }
    const std::vector<float> values = random_floats(static_cast<size_t>(rows) * static_cast<size_t>(cols));
    const Activations x = quantize(kernels, values, rows, cols), reference = quantize(portable, values, rows, cols);
    expect(x.codes == reference.codes && x.scales == reference.scales && x.sums == reference.sums, kernels.name, "quantize");
    const RowsView view = {packed.data(), stride, cols, format};
    const std::vector<int32_t> index = random_index(total);
    const size_t width = index.size();
    const int32_t n = static_cast<int32_t>(width);
    std::vector<float> out(width * static_cast<size_t>(rows)), expected(out), alone(width);
    kernels.dot_rows(view, index.data(), 0, n, x.view(0, rows), out.data(), width);
    portable.dot_rows(view, index.data(), 0, n, x.view(0, rows), expected.data(), width);
    expect_close(out, expected, kernels.name, "dot_rows");
    if (const Kernels* twin = twin_of(kernels)) {
        twin->dot_rows(view, index.data(), 0, n, x.view(0, rows), expected.data(), width);
        expect(same_bits(out, expected), kernels.name, "dot_rows of its twin");
    }
    for (int32_t t = 0; t < rows; ++t) {
        kernels.dot_rows(view, index.data(), 0, n, x.view(t, 1), alone.data(), width);
        const float* together = &out[static_cast<size_t>(t) * width];
        expect(std::equal(alone.begin(), alone.end(), together), kernels.name, "dot_rows of a row alone");
    }
}

void compare_down(const Kernels& kernels, const Kernels& portable, Format format) {
    const int32_t hidden = kChunk * (1 + below(6)), neurons = 1 + below(150), rows = 1 + below(20);
    const size_t stride = code_bytes(format, hidden), width = static_cast<size_t>(hidden);
    const std::vector<uint8_t> packed = random_codes(format, stride * static_cast<size_t>(neurons));
    std::vector<uint16_t> halves(2 * width * static_cast<size_t>(neurons / kGroup + 1));
    for (uint16_t& half : halves) half = random_half();
    std::vector<uint8_t> scales(2 * halves.size());
    std::memcpy(scales.data(), halves.data(), scales.size());
    const bool coded = format == Format::q4 && below(2) == 0;
    if (coded) std::generate(scales.begin(), scales.end(), [] { return static_cast<uint8_t>(below(256)); });
    const std::vector<int32_t> index = random_index(neurons);
    std::vector<float> z = random_floats(index.size() * static_cast<size_t>(rows));
    for (size_t at = 0; at < z.size(); at += index.size()) {
        if (below(4) == 0) std::fill_n(z.begin() + static_cast<std::ptrdiff_t>(at), index.size(), 0.0f);
    }
    const DownView view = {packed.data(), stride, scales.data(), hidden, format, coded ? halves.data() : nullptr};
    std::vector<float> y(width * static_cast<size_t>(rows)), expected(y), alone(width);
    const int32_t n = static_cast<int32_t>(index.size());
    kernels.accumulate_down(view, index.data(), n, z.data(), index.size(), rows, y.data(), width);
    portable.accumulate_down(view, index.data(), n, z.data(), index.size(), rows, expected.data(), width);
    expect_close(y, expected, kernels.name, "accumulate_down");
    if (const Kernels* twin = twin_of(kernels)) {
        std::fill(expected.begin(), expected.end(), 0.0f);
        twin->accumulate_down(view, index.data(), n, z.data(), index.size(), rows, expected.data(), width);
        expect(same_bits(y, expected), kernels.name, "accumulate_down of its twin");
    }
    for (int32_t t = 0; t < rows; ++t) {
        std::fill(alone.begin(), alone.end(), 0.0f);
        const float* z_row = &z[static_cast<size_t>(t) * index.size()];
        kernels.accumulate_down(view, index.data(), n, z_row, index.size(), 1, alone.data(), width);
        expect(std::equal(alone.begin(), alone.end(), &y[static_cast<size_t>(t) * width]), kernels.name, "down of a row alone");
    }
}

// Random codes of bf16 between 2^-7 and 2, or of int8, in 16-key groups that follow each other.
void compare_attention(const Kernels& kernels, const Kernels& portable, KvFormat format) {
    const int32_t dim = 1 + below(100), padded = (dim + 15) / 16 * 16, num_keys = 1 + below(kSpanKeys), queries = 1 + below(14);
    const size_t width = format == KvFormat::bf16 ? 2 : 1, scales = static_cast<size_t>(padded / 16 * kKeyLanes);
    const size_t code_bytes = width * static_cast<size_t>(padded * kKeyLanes);
    const Format codes = format == KvFormat::bf16 ? Format::bf16 : Format::q8;
    const std::vector<uint8_t> keys = random_codes(codes, code_bytes * kSpanGroups), values = random_codes(codes, code_bytes * kSpanGroups);
    const std::vector<float> key_scales(scales * kSpanGroups, 0.01f), value_scales(scales * kSpanGroups, 0.02f);
    KeySpan span{format, dim, padded, num_keys, kKeyLanes, padded, kKeyLanes, {}};
    for (size_t g = 0; g < kSpanGroups; ++g) {
        span.groups[g] = {&keys[g * code_bytes], &values[g * code_bytes], &key_scales[g * scales], &value_scales[g * scales]};
    }
    std::vector<float> q = random_floats(static_cast<size_t>(queries * padded)), out(q.size()), expected(q.size());
    std::vector<KeyRange> ranges;
    for (int32_t i = 0; i < queries; ++i) {
        for (int32_t d = dim; d < padded; ++d) q[static_cast<size_t>(i * padded + d)] = 0.0f;
        const int32_t seen = below(num_keys);
        ranges.push_back({seen - below(150), seen + below(150)});
    }
    std::vector<SoftmaxState> states(ranges.size()), expected_states(ranges.size());
    kernels.attend_span(span, q.data(), ranges.data(), queries, out.data(), states.data());
    portable.attend_span(span, q.data(), ranges.data(), queries, expected.data(), expected_states.data());
    for (size_t i = 0; i < q.size(); ++i) {
        const size_t query = i / static_cast<size_t>(padded);
        if (static_cast<int32_t>(i % static_cast<size_t>(padded)) >= dim) continue;
        expect(std::abs(out[i] / states[query].sum - expected[i] / expected_states[query].sum) < 1e-2f, kernels.name, "attention");
    }
}

// Marks, what is left of them under a threshold, and the values they move: every bit, and nothing past the end.
void compare_selection(const Kernels& kernels, const Kernels& portable) {
    const auto n = static_cast<size_t>(1 + below(100));
    const std::vector<float> weights = random_floats(4 * n);
    std::vector<float> values = random_floats(n);
    if (below(2) == 0) values[static_cast<size_t>(below(static_cast<int>(n)))] = std::nanf("");
    std::vector<int32_t> index;
    for (size_t i = 0, at = 0; i < n; ++i, at += 1 + static_cast<size_t>(below(2) * below(3))) {
        index.push_back(static_cast<int32_t>(at));
    }
    std::vector<uint32_t> marks((n + 31) / 32), expected_marks;
    for (size_t i = 0; i < n; ++i) marks[i / 32] |= static_cast<uint32_t>(below(4) != 0) << (i % 32);
    expected_marks = marks;
    const auto count = static_cast<int32_t>(n);
    kernels.drop_below(values.data(), weights.data(), index.data(), 0.3f, count, marks.data());
    portable.drop_below(values.data(), weights.data(), index.data(), 0.3f, count, expected_marks.data());
    expect(marks == expected_marks, kernels.name, "drop_below");
    std::vector<int32_t> moved(n, -1), expected_moved(n, -1);
    const int32_t num_moved = kernels.gather_marked(marks.data(), count, index.data(), moved.data());
    expect(num_moved == portable.gather_marked(marks.data(), count, index.data(), expected_moved.data()), kernels.name,
           "gather_marked: count");
    for (size_t i = 0; i < static_cast<size_t>(num_moved); ++i) {
        expect(moved[i] == expected_moved[i], kernels.name, "gather_marked");
    }
    std::vector<float> expected_values = values;
    kernels.clear_unmarked(marks.data(), count, values.data());
    portable.clear_unmarked(marks.data(), count, expected_values.data());
    kernels.gather_marked(marks.data(), count, values.data(), values.data());
    portable.gather_marked(marks.data(), count, expected_values.data(), expected_values.data());
    expect(std::memcmp(values.data(), expected_values.data(), 4 * static_cast<size_t>(num_moved)) == 0, kernels.name,
           "clear_unmarked");
}

}  // namespace

int main() {
    const Kernels& portable = *find_kernels("portable");
    for (const std::string& isa : available_isas()) {
        for (int round = 0; round < 30; ++round) {
            compare_attention(*find_kernels(isa), portable, KvFormat::bf16);
            compare_attention(*find_kernels(isa), portable, KvFormat::int8);
            compare_selection(*find_kernels(isa), portable);
            for (const Format format : {Format::q4, Format::q8, Format::bf16}) {
                compare_dots(*find_kernels(isa), portable, format);
                compare_down(*find_kernels(isa), portable, format);
            }
        }
        std::printf("%s ok\n", isa.c_str());
    }
}
