// The extension module `_native`: the model behind a Python class, arrays in and out, the GIL released while a step runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bind_kernels.h"
#include "bind_sampling.h"
#include "bind_selection.h"
#include "image.h"
#include "step.h"

namespace nb = nanobind;

namespace glass {
namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using PriorSums = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<nb::numpy, const float, nb::ndim<2>, nb::c_contig>;

Activation parse_activation(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    throw std::invalid_argument("activation must be silu, gelu or gelu_tanh, got '" + name + "'");
}

FfnPath parse_path(const std::string& name) {
    if (name == "cheapest") return FfnPath::cheapest;
    if (name == "union_list") return FfnPath::union_list;
    if (name == "all_neurons") return FfnPath::all_neurons;
    throw std::invalid_argument("the FFN's path must be cheapest, union_list or all_neurons, got '" + name + "'");
}

Format parse_format(const std::string& name) {
    if (name == "int4") return Format::q4;
    if (name == "int8") return Format::q8;
    if (name == "bf16") return Format::bf16;
    throw std::invalid_argument("format must be int4, int8 or bf16, got '" + name + "'");
}

KvFormat parse_kv_format(const std::string& name) {
    if (name == "bf16") return KvFormat::bf16;
    if (name == "int8") return KvFormat::int8;
    throw std::invalid_argument("kv_cache_dtype must be bf16 or int8, got '" + name + "'");
}

// Bytes that one block of the KV cache takes.
size_t kv_block_bytes(nb::handle spec, int32_t block_size, const std::string& dtype) {
    const auto size = [&](const char* name) { return nb::cast<int32_t>(spec.attr(name)); };
    return KvLayout{size("num_layers"), size("num_kv_heads"), size("head_dim"), block_size, parse_kv_format(dtype)}
            .block_bytes();
}

// Reads the attributes of Python's ModelSpec.
ModelShape shape_of(nb::handle spec, const std::string& format) {
    const auto size = [&](const char* name) { return nb::cast<int32_t>(spec.attr(name)); };
    const auto flag = [&](const char* name) { return nb::cast<bool>(spec.attr(name)); };
    ModelShape shape;
    shape.vocab_size = size("vocab_size");
    shape.hidden_size = size("hidden_size");
    shape.intermediate_size = size("intermediate_size");
    shape.num_layers = size("num_layers");
    shape.num_heads = size("num_attention_heads");
    shape.num_kv_heads = size("num_kv_heads");
    shape.head_dim = size("head_dim");
    shape.norm_eps = nb::cast<float>(spec.attr("norm_eps"));
    shape.activation = parse_activation(nb::cast<std::string>(spec.attr("activation")));
    shape.ffn_format = parse_format(format);
    shape.tied = flag("tie_word_embeddings");
    shape.qkv_bias = flag("qkv_bias");
    shape.o_bias = flag("attention_output_bias");
    shape.mlp_bias = flag("mlp_bias");
    shape.qk_norm = flag("qk_norm");
    shape.sandwich_norms = flag("sandwich_norms");
    shape.embedding_scale = nb::cast<float>(spec.attr("embedding_scale"));
    shape.score_scale = nb::cast<float>(spec.attr("score_scale"));
    shape.num_ropes = static_cast<int32_t>(nb::cast<nb::tuple>(spec.attr("ropes")).size());
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
        shape.rope_indices.push_back(nb::cast<int32_t>(spec.attr("rope_index")(layer)));
    }
    for (nb::handle window : spec.attr("sliding_window")) {
        shape.windows.push_back(window.is_none() ? 0 : nb::cast<int32_t>(window));
    }
    return shape;
}

std::vector<TensorEntry> entries_of(nb::iterable tensors) {
    std::vector<TensorEntry> entries;
    for (nb::handle item : tensors) {
        const auto tensor = nb::cast<nb::tuple>(item);
        if (tensor.size() != 8) throw std::invalid_argument("a tensor is described by 8 values");
        entries.push_back(TensorEntry{nb::cast<std::string>(tensor[0]), nb::cast<std::string>(tensor[1]),
                                      nb::cast<uint64_t>(tensor[2]), nb::cast<uint64_t>(tensor[3]),
                                      nb::cast<int64_t>(tensor[4]), nb::cast<int64_t>(tensor[5]),
                                      nb::cast<int64_t>(tensor[6]), nb::cast<int64_t>(tensor[7])});
    }
    return entries;
}

void check_sums(const ModelShape& shape, size_t rows, size_t cols) {
    if (rows != static_cast<size_t>(shape.num_layers) || cols != static_cast<size_t>(shape.intermediate_size)) {
        throw std::invalid_argument("statistics and scores must have the shape (num_layers, intermediate_size)");
    }
}

const float* prior_of(const ModelShape& shape, nb::handle sums) {
    if (sums.is_none()) return nullptr;
    const auto array = nb::cast<PriorSums>(sums);
    check_sums(shape, array.shape(0), array.shape(1));
    return array.data();
}

// (prior sum_abs, prior sum_squares, [(length, sum_abs, sum_squares), …]); the caller keeps the arrays alive.
StatisticsRow statistics_of(const ModelShape& shape, nb::handle item) {
    const auto tuple = nb::cast<nb::tuple>(item);
    StatisticsRow row{prior_of(shape, tuple[0]), prior_of(shape, tuple[1]), {}};
    for (nb::handle entry : nb::cast<nb::list>(tuple[2])) {
        const auto stage = nb::cast<nb::tuple>(entry);
        const auto sum_abs = nb::cast<Sums>(stage[1], false), sum_squares = nb::cast<Sums>(stage[2], false);
        check_sums(shape, sum_abs.shape(0), sum_abs.shape(1));
        check_sums(shape, sum_squares.shape(0), sum_squares.shape(1));
        row.stages.push_back({nb::cast<int32_t>(stage[0]), sum_abs.data(), sum_squares.data()});
    }
    return row;
}

// Rows described by parallel arrays: (start, tokens, blocks, plan, collect, logits) each.
std::vector<StepRow> rows_of(const Array<int32_t>& tokens, const Array<int32_t>& blocks, const Matrix<int32_t>& layout,
                             const Array<float>& scales) {
    if (layout.shape(1) != 6) throw std::invalid_argument("the layout of a row has 6 values");
    if (scales.size() != 0 && scales.size() != tokens.size()) {
        throw std::invalid_argument("scales: expected none or one per token");
    }
    std::vector<StepRow> rows;
    size_t token = 0, block = 0;
    for (size_t r = 0; r < layout.shape(0); ++r) {
        const int32_t* values = layout.data() + 6 * r;
        const int32_t num_tokens = values[1], num_blocks = values[2];
        if (num_tokens < 0 || num_blocks < 0 || static_cast<size_t>(num_tokens) > tokens.size() - token ||
            static_cast<size_t>(num_blocks) > blocks.size() - block) {
            throw std::invalid_argument("row " + std::to_string(r) + ": fewer tokens or blocks than it says");
        }
        rows.push_back(StepRow{tokens.data() + token, num_tokens, values[0], blocks.data() + block, num_blocks,
                               values[3], values[4] != 0, values[5],
                               scales.size() == 0 ? nullptr : scales.data() + token});
        token += static_cast<size_t>(num_tokens);
        block += static_cast<size_t>(num_blocks);
    }
    return rows;
}

// The arrays of Python's Refinement, kept alive, not copied: the plans of many requests share them.
class RefinementArrays {
public:
    RefinementArrays(nb::handle refinement, const ModelShape& shape)
        : inputs_(matrix(refinement.attr("weights").attr("inputs"), shape.num_layers, shape.hidden_size)),
          down_(matrix(refinement.attr("weights").attr("down"), shape.num_layers, shape.intermediate_size)),
          thresholds_(matrix(refinement.attr("thresholds"), 2, shape.num_layers)) {}

    PlanRefinement view() const { return {inputs_.data(), down_.data(), thresholds_.data()}; }

private:
    static Matrix<float> matrix(nb::handle values, int32_t rows, int32_t cols) {
        const auto array = nb::cast<Matrix<float>>(values, false);
        if (array.shape(0) == static_cast<size_t>(rows) && array.shape(1) == static_cast<size_t>(cols)) return array;
        throw std::invalid_argument("a refinement's array must have the shape (" + std::to_string(rows) + ", " +
                                    std::to_string(cols) + ")");
    }

    Matrix<float> inputs_, down_, thresholds_;
};

std::vector<int32_t> group_counts(const Plan& plan) {
    std::vector<int32_t> counts;
    for (const LayerPlan& layer : plan) counts.push_back(layer.num_groups());
    return counts;
}

// threads, KV blocks, positions per block, type of the KV cache
using Sizes = std::tuple<int32_t, int32_t, int32_t, std::string>;

// The image and the model on it, for Python.
class NativeModel {
public:
    NativeModel(const std::string& path, uint64_t payload_offset, uint64_t payload_bytes, nb::iterable tensors,
                nb::handle spec, const std::string& format, const Sizes& sizes, const std::string& isa)
        : image_(path, payload_offset, payload_bytes, entries_of(tensors)),
          model_(image_, shape_of(spec, format),
                 ModelOptions{std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes),
                              parse_kv_format(std::get<3>(sizes)), isa}) {}

    Model& model() { return model_; }

    // How many groups of neurons each layer of the plan has.
    std::vector<int32_t> add_plan(int32_t key, const std::vector<Array<int32_t>>& layers, nb::handle refinement) {
        std::vector<NeuronRange> lists;
        for (const Array<int32_t>& layer : layers) lists.push_back({layer.data(), static_cast<int32_t>(layer.size())});
        if (refinement.is_none()) {
            return group_counts(model_.plans().add(key, lists));
        }
        const RefinementArrays arrays(refinement, model_.shape());
        const Plan& plan = model_.plans().add(key, lists, arrays.view());
        refinements_.emplace(key, arrays);
        return group_counts(plan);
    }

    void remove_plan(int32_t key) {
        model_.plans().remove(key);
        refinements_.erase(key);
    }

    nb::object choose_neurons(const ScoreMatrix& values, const RankMatrix& model_ranks, const WeightMatrix& weights,
                              const std::vector<int32_t>& budgets, const RankMatrix& reference) {
        return glass::choose_neurons(model_.pool(), values, model_ranks, weights, budgets, reference);
    }

    std::tuple<double, double> time_ffn(int32_t num_rows, float density, double seconds) {
        if (num_rows < 1 || num_rows > kTokenTile || !(density > 0.0f && density <= 1.0f)) {
            throw std::invalid_argument("time_ffn: expected 1 to " + std::to_string(kTokenTile) +
                                        " rows and a density in (0, 1]");
        }
        nb::gil_scoped_release unlocked;
        const FfnTiming timing = model_.ffn_probe(density).time(num_rows, seconds);
        return {timing.listed, timing.whole};
    }

    nb::object magnitudes() {
        const ModelShape& shape = model_.shape();
        const auto layers = static_cast<size_t>(shape.num_layers), neurons = static_cast<size_t>(shape.intermediate_size);
        auto values = std::make_unique<float[]>(layers * neurons);
        {
            nb::gil_scoped_release unlocked;
            model_.magnitudes(values.get());
        }
        float* data = values.release();
        nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
        return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(data, {layers, neurons}, owner));
    }

    nb::tuple step(Array<int32_t> tokens, Array<int32_t> blocks, Matrix<int32_t> layout, Matrix<float> frequencies,
                   nb::list statistics, nb::list samples, Array<float> scales) {
        const ModelShape& shape = model_.shape();
        if (frequencies.shape(1) != static_cast<size_t>(shape.head_dim / 2) * static_cast<size_t>(shape.num_ropes)) {
            throw std::invalid_argument("frequencies must have num_ropes * head_dim / 2 columns");
        }
        const std::vector<StepRow> rows = rows_of(tokens, blocks, layout, scales);
        std::vector<StatisticsRow> sums;
        for (nb::handle item : statistics) sums.push_back(statistics_of(model_.shape(), item));
        const std::vector<SampleRequest> requests = sample_requests_of(samples);
        StepOutput output{};
        {
            nb::gil_scoped_release unlocked;
            output = model_.step(rows, {frequencies.data(), static_cast<int32_t>(frequencies.shape(0))}, sums, requests);
        }
        // the logits stay in the model's buffer: whoever holds the array keeps the model alive
        const Logits logits(output.logits, {output.drawn.size(), static_cast<size_t>(model_.shape().vocab_size)},
                            nb::find(this));
        nb::list cascades;
        for (const CascadeWork& work : output.cascades) cascades.append(nb::make_tuple(work.weights, work.bytes));
        const nb::tuple executed = nb::make_tuple(output.work.plain, output.work.refined, output.work.bytes);
        return nb::make_tuple(drawn_list(output.drawn), logits, executed, cascades);
    }

private:
    Image image_;
    Model model_;
    std::unordered_map<int32_t, RefinementArrays> refinements_;  // what the plans of these keys point to
};

}  // namespace
}  // namespace glass

NB_MODULE(_native, module) {
    using glass::NativeModel;
    module.doc() = "The native CPU runner's model; see runner.py.";
    glass::bind_kernels(module);
    module.def("kv_block_bytes", &glass::kv_block_bytes, nb::arg("spec"), nb::arg("block_size"), nb::arg("dtype"));
    glass::bind_sampling(module);
    nb::class_<NativeModel>(module, "Model")
        .def(nb::init<const std::string&, uint64_t, uint64_t, nb::iterable, nb::handle, const std::string&,
                      const glass::Sizes&, const std::string&>(),
             nb::arg("path"), nb::arg("payload_offset"), nb::arg("payload_bytes"), nb::arg("tensors"), nb::arg("spec"),
             nb::arg("format"), nb::arg("sizes"), nb::arg("isa") = "")
        .def("add_plan", &NativeModel::add_plan, nb::arg("key"), nb::arg("layers"), nb::arg("refinement").none())
        .def("remove_plan", &NativeModel::remove_plan, nb::arg("key"))
        .def("choose_neurons", &NativeModel::choose_neurons, nb::arg("values").noconvert().none(),
             nb::arg("model_ranks").noconvert().none(), nb::arg("weights").noconvert(), nb::arg("budgets"),
             nb::arg("reference").noconvert().none())
        .def("set_ffn_break_even",
             [](NativeModel& self, const std::vector<std::tuple<int32_t, float>>& points) {
                 std::vector<glass::BreakEven> values;
                 for (const auto& [num_rows, density] : points) values.push_back({num_rows, density});
                 self.model().ffn().choice().set(std::move(values));
             },
             nb::arg("points"))
        .def("force_ffn_path",
             [](NativeModel& self, const std::string& path) {
                 self.model().ffn().choice().force(glass::parse_path(path));
             },
             nb::arg("path"))
        .def("time_ffn", &NativeModel::time_ffn, nb::arg("num_rows"), nb::arg("density"), nb::arg("seconds"))
        .def("magnitudes", &NativeModel::magnitudes)
        .def("step", &NativeModel::step, nb::arg("tokens"), nb::arg("blocks"), nb::arg("layout"),
             nb::arg("frequencies"), nb::arg("statistics"), nb::arg("samples"), nb::arg("scales"))
        .def_prop_ro("isa", [](NativeModel& self) { return std::string(self.model().isa()); })
        .def_prop_ro("num_threads", [](NativeModel& self) { return self.model().num_threads(); });
}
