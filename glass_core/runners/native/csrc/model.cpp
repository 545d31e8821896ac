#include "model.h"

#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "rows.h"

namespace glass {
namespace {

void check_size(const char* name, int64_t value) {
    if (value < 1 || value > (int64_t{1} << 28)) {
        throw std::invalid_argument(std::string(name) + " must lie in [1, 2^28], got " + std::to_string(value));
    }
}

[[noreturn]] void refuse(const Tensor& tensor, const std::string& problem) {
    throw std::runtime_error("weight image: tensor '" + tensor.entry.name + "' " + problem);
}

// Scales or their units, `num_bytes` of them.
const uint8_t* scale_values(const Tensor& tensor, const std::string& kind, size_t num_bytes) {
    const TensorEntry& entry = tensor.entry;
    if (entry.kind != kind) refuse(tensor, "is of kind " + entry.kind + ", expected " + kind);
    if (entry.num_bytes < num_bytes) refuse(tensor, "has too few bytes");
    return tensor.data;
}

// A matrix of `outputs` rows by its `count` columns.
DownView view_columns(const Tensor& tensor, Format format, int32_t count, int32_t outputs) {
    const TensorEntry& entry = tensor.entry;
    const int32_t outputs_padded = padded(outputs);
    const auto stride = static_cast<size_t>(entry.row_bytes);
    if (entry.kind != "columns") refuse(tensor, "is of kind " + entry.kind + ", expected columns");
    if (entry.rows != count || entry.cols != outputs || entry.padded_cols != outputs_padded) {
        refuse(tensor, "has a shape other than [" + std::to_string(count) + ", " + std::to_string(outputs) + "]");
    }
    if (stride < code_bytes(format, outputs_padded)) refuse(tensor, "has columns of too few bytes");
    return DownView{tensor.data, stride, nullptr, outputs_padded, format};
}

// Looks tensors up by "layers.{i}.name".
class LayerReader {
public:
    LayerReader(const Image& image, const ModelShape& shape, int32_t layer)
        : image_(image), shape_(shape), prefix_("layers." + std::to_string(layer) + ".") {}

    LayerWeights read() const {
        LayerWeights layer{};
        layer.input_norm = floats("input_norm", shape_.hidden_size);
        layer.qkv = rows("qkv", shape_.qkv_size(), shape_.hidden_size);
        layer.qkv_bias = optional_floats(shape_.qkv_bias, "qkv_bias", shape_.qkv_size());
        layer.q_norm = optional_floats(shape_.qk_norm, "q_norm", shape_.head_dim);
        layer.k_norm = optional_floats(shape_.qk_norm, "k_norm", shape_.head_dim);
        layer.o = rows("o", shape_.hidden_size, shape_.q_size());
        layer.o_bias = optional_floats(shape_.o_bias, "o_bias", shape_.hidden_size);
        layer.attention_output_norm =
            optional_floats(shape_.sandwich_norms, "attention_output_norm", shape_.hidden_size);
        layer.post_norm = floats("post_norm", shape_.hidden_size);
        layer.ffn = ffn();
        layer.ffn_output_norm = optional_floats(shape_.sandwich_norms, "ffn_output_norm", shape_.hidden_size);
        return layer;
    }

private:
    FfnWeights ffn() const {
        FfnWeights ffn{};
        ffn.gate_up = rows("gate_up", 2 * shape_.intermediate_size, shape_.hidden_size);
        if (ffn.gate_up.format != shape_.ffn_format) refuse(image_.get(prefix_ + "gate_up"), "is not of the image's own format");
        ffn.down = columns("down", shape_.intermediate_size, shape_.hidden_size);
        ffn.inputs = columns("inputs", shape_.hidden_size, 2 * padded(shape_.intermediate_size));
        if (shape_.ffn_format == Format::q4) {
            const size_t num_bytes = sizeof(uint16_t) * scales_per_group(ffn.inputs);
            ffn.inputs.units = reinterpret_cast<const uint16_t*>(
                scale_values(image_.get(prefix_ + "input_units"), "scale_units", num_bytes));
        }
        if (shape_.ffn_format != Format::bf16) {
            add_scales("down_scales", shape_.intermediate_size, ffn.down);
            add_scales("input_scales", shape_.hidden_size, ffn.inputs);
        }
        ffn.gate_bias = optional_floats(shape_.mlp_bias, "gate_bias", shape_.intermediate_size);
        ffn.up_bias = optional_floats(shape_.mlp_bias, "up_bias", shape_.intermediate_size);
        ffn.down_bias = optional_floats(shape_.mlp_bias, "down_bias", shape_.hidden_size);
        return ffn;
    }

    DownView columns(const char* name, int32_t count, int32_t outputs) const {
        return view_columns(image_.get(prefix_ + name), shape_.ffn_format, count, outputs);
    }
    // The scales of `count` columns.
    void add_scales(const char* name, int32_t count, DownView& columns) const {
        const auto num_groups = static_cast<size_t>((count + kGroup - 1) / kGroup);
        const char* kind = columns.units == nullptr ? "column_scales" : "coded_scales";
        columns.scales = scale_values(image_.get(prefix_ + name), kind, num_groups * group_scale_bytes(columns));
    }
    RowsView rows(const char* name, int32_t num_rows, int32_t cols) const {
        return rows_view(image_.get(prefix_ + name), num_rows, cols);
    }
    const float* floats(const char* name, int32_t count) const {
        return float_values(image_.get(prefix_ + name), count);
    }
    const float* optional_floats(bool wanted, const char* name, int32_t count) const {
        return wanted ? floats(name, count) : nullptr;
    }

    const Image& image_;
    const ModelShape& shape_;
    const std::string prefix_;
};

float norm_of(const RowsView& rows, int32_t index, int32_t cols, std::vector<float>& scratch) {
    decode_row(rows, static_cast<size_t>(index), cols, scratch.data());
    return static_cast<float>(std::sqrt(sum_squares(scratch.data(), cols)));
}

}  // namespace

void ModelShape::check() const {
    const std::pair<const char*, int64_t> sizes[] = {
        {"vocab_size", vocab_size},   {"hidden_size", hidden_size},   {"intermediate_size", intermediate_size},
        {"num_layers", num_layers},   {"num_heads", num_heads},       {"num_kv_heads", num_kv_heads},
        {"head_dim", head_dim},       {"num_ropes", num_ropes},
        {"qkv size", (static_cast<int64_t>(num_heads) + 2 * static_cast<int64_t>(num_kv_heads)) * head_dim}};
    for (const auto& [name, value] : sizes) check_size(name, value);
    if (num_heads % num_kv_heads != 0) throw std::invalid_argument("num_heads must be a multiple of num_kv_heads");
    if (head_dim % 2 != 0) throw std::invalid_argument("head_dim must be even");
    if (static_cast<int32_t>(windows.size()) != num_layers) throw std::invalid_argument("expected one window per layer");
    if (rope_indices.size() != windows.size()) throw std::invalid_argument("expected one rotary embedding per layer");
    for (const int32_t index : rope_indices) {
        if (index < 0 || index >= num_ropes) throw std::invalid_argument("a layer's rotary embedding does not exist");
    }
}

void FfnParts::add(const FfnParts& other) {
    rows += other.rows;
    down += other.down;
    down_groups += other.down_groups;
    inputs += other.inputs;
    input_groups += other.input_groups;
    input_layers += other.input_layers;
}

int64_t FfnParts::bytes(const FfnWeights& ffn) const {
    return 2 * rows * static_cast<int64_t>(ffn.gate_up.stride) + down * static_cast<int64_t>(ffn.down.stride) +
           down_groups * static_cast<int64_t>(group_scale_bytes(ffn.down)) +
           inputs * static_cast<int64_t>(ffn.inputs.stride) +
           input_groups * static_cast<int64_t>(group_scale_bytes(ffn.inputs)) +
           input_layers * static_cast<int64_t>(unit_bytes(ffn.inputs));
}

ModelWeights view_weights(const Image& image, const ModelShape& shape) {
    ModelWeights weights{};
    weights.embed = rows_view(image.get("embed_tokens"), shape.vocab_size, shape.hidden_size);
    weights.head = shape.tied ? weights.embed : rows_view(image.get("lm_head"), shape.vocab_size, shape.hidden_size);
    weights.norm = float_values(image.get("norm"), shape.hidden_size);
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
        weights.layers.push_back(LayerReader(image, shape, layer).read());
    }
    return weights;
}

void neuron_magnitudes(const FfnWeights& ffn, const ModelShape& shape, float* out) {
    std::vector<float> scratch(static_cast<size_t>(shape.hidden_size));
    for (int32_t neuron = 0; neuron < shape.intermediate_size; ++neuron) {
        out[neuron] = norm_of(ffn.gate_up, 2 * neuron, shape.hidden_size, scratch) *
                      norm_of(ffn.gate_up, 2 * neuron + 1, shape.hidden_size, scratch);
    }
}

}  // namespace glass
