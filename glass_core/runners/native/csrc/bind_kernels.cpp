// Python access to the choice of ISA and, for tests, to every kernel of every ISA: arrays in, arrays out, shapes checked.
#include "bind_kernels.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"

namespace nb = nanobind;

namespace glass {
namespace {

template <typename T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <typename T, int N>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<N>, nb::c_contig>;

const Kernels& require(const std::string& isa) {
    if (const Kernels* kernels = find_kernels(isa)) return *kernels;
    throw nb::value_error(("no kernels for ISA '" + isa + "' here").c_str());
}

void check(bool condition, const char* what) {
    if (!condition) throw nb::value_error(what);
}

Format parse_format(const std::string& name) {
    if (name == "q4") return Format::q4;
    if (name == "q8") return Format::q8;
    check(name == "bf16", "format must be q4, q8 or bf16");
    return Format::bf16;
}

size_t code_bytes(Format format, size_t cols) {
    return format == Format::q4 ? cols / 2 : (format == Format::q8 ? cols : 2 * cols);
}

size_t row_bytes(Format format, size_t cols) {
    const size_t scale_bytes = format == Format::q4 ? 4 : (format == Format::q8 ? 2 : 0);
    return code_bytes(format, cols) + cols / kGroup * scale_bytes;
}

template <typename T>
Out<T, 2> make(size_t rows, size_t cols) {
    auto data = std::make_unique<T[]>(rows * cols);
    T* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Out<T, 2>(raw, {rows, cols}, owner);
}

nb::tuple quantize(const std::string& isa, In<float, 2> x, int32_t cols_padded) {
    const Kernels& kernels = require(isa);
    check(cols_padded % kChunk == 0 && cols_padded >= static_cast<int32_t>(x.shape(1)), "cols_padded: multiple of 64");
    const size_t rows = x.shape(0), groups = static_cast<size_t>(cols_padded / kGroup);
    auto codes = make<int8_t>(rows, static_cast<size_t>(cols_padded));
    auto scales = make<float>(rows, groups), sums = make<float>(rows, groups);
    for (size_t t = 0; t < rows; ++t) {
        kernels.quantize(x.data() + t * x.shape(1), static_cast<int32_t>(x.shape(1)), cols_padded,
                         codes.data() + t * static_cast<size_t>(cols_padded), scales.data() + t * groups,
                         sums.data() + t * groups);
    }
    return nb::make_tuple(codes, scales, sums);
}

// Copies of the rows, so that the last one ends where the allocation ends: a sanitizer sees any read past it.
std::unique_ptr<uint8_t[]> exact_copy(const uint8_t* from, size_t rows, size_t stride, size_t used) {
    const size_t size = rows == 0 ? 0 : (rows - 1) * stride + used;
    auto copy = std::make_unique<uint8_t[]>(size);
    std::copy_n(from, size, copy.get());
    return copy;
}

void check_index(const int32_t* index, size_t n, size_t rows) {
    for (size_t i = 0; i < n; ++i) check(index[i] >= 0 && static_cast<size_t>(index[i]) < rows, "index out of range");
}

Out<float, 2> dot_rows(const std::string& isa, const std::string& format_name, In<uint8_t, 2> packed,
                       std::optional<In<int32_t, 1>> index, int32_t first, int32_t n, In<float, 2> values,
                       In<int8_t, 2> codes, In<float, 2> scales, In<float, 2> sums) {
    const Kernels& kernels = require(isa);
    const Format format = parse_format(format_name);
    const size_t cols = codes.shape(1), rows = values.shape(0), groups = cols / kGroup;
    check(cols % kChunk == 0 && cols > 0, "codes: columns must be a positive multiple of 64");
    check(values.shape(1) == cols && scales.shape(1) == groups && sums.shape(1) == groups, "activations: columns differ");
    check(codes.shape(0) == rows && scales.shape(0) == rows && sums.shape(0) == rows, "activations: rows differ");
    check(packed.shape(1) >= row_bytes(format, cols), "packed: rows are too short");
    if (index) {
        check(index->shape(0) == static_cast<size_t>(n), "index: n entries expected");
        check_index(index->data(), index->shape(0), packed.shape(0));
    } else {
        check(first >= 0 && n >= 0 && static_cast<size_t>(first) + static_cast<size_t>(n) <= packed.shape(0), "first, n");
    }
    const auto copy = exact_copy(packed.data(), packed.shape(0), packed.shape(1), row_bytes(format, cols));
    const RowsView view = {copy.get(), packed.shape(1), static_cast<int32_t>(cols), format};
    const ActivationView x = {values.data(), cols, codes.data(), cols, scales.data(), sums.data(), groups,
                              static_cast<int32_t>(rows)};
    auto out = make<float>(rows, static_cast<size_t>(n));
    kernels.dot_rows(view, index ? index->data() : nullptr, first, n, x, out.data(), static_cast<size_t>(n));
    return out;
}

Out<float, 2> accumulate_down(const std::string& isa, const std::string& format_name, In<uint8_t, 2> packed,
                              In<uint8_t, 2> scales, std::optional<In<uint16_t, 1>> units, In<int32_t, 1> index,
                              In<float, 2> z, In<float, 2> y) {
    const Kernels& kernels = require(isa);
    const Format format = parse_format(format_name);
    const size_t hidden = y.shape(1), rows = y.shape(0), n = index.shape(0);
    check(hidden % kChunk == 0, "y: columns must be a multiple of 64");
    check(z.shape(0) == rows && z.shape(1) == n, "z: a row per row of y, a column per index");
    check(packed.shape(1) >= code_bytes(format, hidden), "packed: columns are too short");
    check_index(index.data(), n, packed.shape(0));
    const auto copy = exact_copy(packed.data(), packed.shape(0), packed.shape(1), code_bytes(format, hidden));
    const DownView view = {copy.get(), packed.shape(1), scales.data(), static_cast<int32_t>(hidden), format,
                           units ? units->data() : nullptr};
    check(!units || (format == Format::q4 && units->shape(0) == scales_per_group(view)), "units: one per scale of a group");
    if (format != Format::bf16) {
        check(scales.shape(0) * kGroup >= packed.shape(0), "scales: a row per 32 neurons");
        check(scales.shape(1) == group_scale_bytes(view), "scales: columns");
    }
    auto out = make<float>(rows, hidden);
    std::copy_n(y.data(), rows * hidden, out.data());
    kernels.accumulate_down(view, index.data(), static_cast<int32_t>(n), z.data(), n, static_cast<int32_t>(rows),
                            out.data(), hidden);
    return out;
}

// Name, problem, whether it is a failed check.
std::vector<std::tuple<std::string, std::string, bool>> rows_of(const std::vector<IsaState>& states) {
    std::vector<std::tuple<std::string, std::string, bool>> rows;
    for (const IsaState& state : states) rows.emplace_back(state.name, state.problem, state.defective);
    return rows;
}

}  // namespace

void bind_kernels(nb::module_& parent) {
    nb::module_ m = parent.def_submodule("kernels", "The choice of instruction set; every kernel of each, for tests.");
    m.def("available_isas", &available_isas);
    m.def("isa_states", [] { return rows_of(isa_states()); });
    m.def("passed_over_isas", [] { return rows_of(passed_over_isas()); });
    m.def("choose_isa", [](const std::string& isa) { return std::string(choose_kernels(isa).name); }, nb::arg("isa"));
    bind_attention(m);
    m.def("quantize", &quantize, nb::arg("isa"), nb::arg("x"), nb::arg("cols_padded"));
    m.def("dot_rows", &dot_rows, nb::arg("isa"), nb::arg("format"), nb::arg("packed"), nb::arg("index").none(),
          nb::arg("first"), nb::arg("n"), nb::arg("values"), nb::arg("codes"), nb::arg("scales"), nb::arg("sums"));
    m.def("accumulate_down", &accumulate_down, nb::arg("isa"), nb::arg("format"), nb::arg("packed"), nb::arg("scales"),
          nb::arg("units").none(), nb::arg("index"), nb::arg("z"), nb::arg("y"));
}

}  // namespace glass
