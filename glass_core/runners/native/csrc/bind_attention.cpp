// Python access to the attention kernel of every ISA, for tests: one span of 16-key groups, each in memory of its own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <string>

#include "bind_kernels.h"
#include "kernels/kernels.h"

namespace nb = nanobind;

namespace glass {
namespace {

template <typename T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::c_contig>;

void check(bool condition, const char* what) {
    if (!condition) throw nb::value_error(what);
}

Out make(size_t rows, size_t cols) {
    auto data = std::make_unique<float[]>(rows * cols);
    float* raw = data.release();
    nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return Out(raw, {rows, cols}, owner);
}

// keys (groups, head_dim, 16 * width) and values (groups, 16, padded_dim * width) in bytes, scales (groups, n, 16),
// q (queries, padded_dim), ranges (queries, 2). Returns out (queries, padded_dim) and states (queries, 2).
nb::tuple attend_span(const std::string& isa, const std::string& format, In<uint8_t, 3> keys, In<uint8_t, 3> values,
                      In<float, 3> key_scales, In<float, 3> value_scales, int32_t num_keys, In<float, 2> q,
                      In<int32_t, 2> ranges) {
    const Kernels* kernels = find_kernels(isa);
    check(kernels != nullptr, "no kernels for this ISA here");
    check(format == "bf16" || format == "int8", "format must be bf16 or int8");
    const KvFormat kv_format = format == "bf16" ? KvFormat::bf16 : KvFormat::int8;
    const size_t width = kv_format == KvFormat::bf16 ? 2 : 1, groups = keys.shape(0), dim = keys.shape(1);
    const size_t padded = q.shape(1), num_queries = q.shape(0), num_scales = (dim + kKvScaleDims - 1) / kKvScaleDims;
    check(groups <= kSpanGroups && padded % kKeyLanes == 0 && dim <= padded, "groups, head_dim");
    check(num_keys >= 1 && static_cast<size_t>(num_keys) <= groups * kKeyLanes, "num_keys");
    check(keys.shape(2) == kKeyLanes * width && values.shape(0) == groups, "keys, values");
    check(values.shape(1) == kKeyLanes && values.shape(2) == padded * width, "values");
    for (const auto& scales : {key_scales, value_scales}) {
        check(scales.shape(0) == groups && scales.shape(1) == num_scales && scales.shape(2) == kKeyLanes, "scales");
    }
    check(ranges.shape(0) == num_queries && ranges.shape(1) == 2, "ranges");
    KeySpan span{kv_format, static_cast<int32_t>(dim), static_cast<int32_t>(padded), num_keys, kKeyLanes,
                 static_cast<int32_t>(padded), kKeyLanes, {}};
    for (size_t g = 0; g < groups; ++g) {
        span.groups[g] = {keys.data() + g * dim * kKeyLanes * width, values.data() + g * kKeyLanes * padded * width,
                          key_scales.data() + g * num_scales * kKeyLanes, value_scales.data() + g * num_scales * kKeyLanes};
    }
    auto out = make(num_queries, padded), states = make(num_queries, 2);
    kernels->attend_span(span, q.data(), reinterpret_cast<const KeyRange*>(ranges.data()),
                         static_cast<int32_t>(num_queries), out.data(), reinterpret_cast<SoftmaxState*>(states.data()));
    return nb::make_tuple(out, states);
}

}  // namespace

void bind_attention(nb::module_& kernels) {
    kernels.def("attend_span", &attend_span, nb::arg("isa"), nb::arg("format"), nb::arg("keys"), nb::arg("values"),
                nb::arg("key_scales"), nb::arg("value_scales"), nb::arg("num_keys"), nb::arg("q"), nb::arg("ranges"));
}

}  // namespace glass
