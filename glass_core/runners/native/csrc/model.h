// A model's sizes and its weights as views on the image.
#pragma once

#include <cstdint>
#include <vector>

#include "elementwise.h"
#include "image.h"
#include "kernels/kernels.h"

namespace glass {

// The fields of Python's ModelSpec that the step reads. windows[l] is layer l's attention span, 0 = full.
struct ModelShape {
    int32_t vocab_size = 0;
    int32_t hidden_size = 0;
    int32_t intermediate_size = 0;
    int32_t num_layers = 0;
    int32_t num_heads = 0;
    int32_t num_kv_heads = 0;
    int32_t head_dim = 0;
    float norm_eps = 0.0f;
    Activation activation = Activation::silu;
    Format ffn_format = Format::bf16;
    bool tied = false;
    bool qkv_bias = false;
    bool o_bias = false;
    bool mlp_bias = false;
    bool qk_norm = false;
    bool sandwich_norms = false;
    float embedding_scale = 1.0f;
    float score_scale = 0.0f;
    int32_t num_ropes = 1;
    std::vector<int32_t> windows;
    std::vector<int32_t> rope_indices;  // of every layer, below num_ropes

    int32_t q_size() const { return num_heads * head_dim; }
    int32_t kv_size() const { return num_kv_heads * head_dim; }
    int32_t qkv_size() const { return q_size() + 2 * kv_size(); }
    int32_t num_groups() const { return (intermediate_size + kGroup - 1) / kGroup; }

    // Throws std::invalid_argument naming the size that cannot be.
    void check() const;
};

// Biases and norms a model lacks are null.
struct FfnWeights {
    RowsView gate_up;  // row 2j is neuron j's of gate, row 2j + 1 that of up
    DownView down;
    DownView inputs;  // gate and up again, by their columns: what every input adds to all neurons' gates, then to their u
    const float* gate_bias;
    const float* up_bias;
    const float* down_bias;

    size_t neuron_bytes() const { return 2 * gate_up.stride + down.stride; }
};

// How much of a layer's FFN is read: neurons' rows of gate and up, columns of down and groups of 32 neurons that these are
// of, inputs' columns of gate and up, groups of 32 inputs that these are of, and layers of which inputs are read.
struct FfnParts {
    int64_t rows = 0;
    int64_t down = 0;
    int64_t down_groups = 0;
    int64_t inputs = 0;
    int64_t input_groups = 0;
    int64_t input_layers = 0;

    void add(const FfnParts& other);
    int64_t weights(const ModelShape& shape) const {
        return (2 * rows + down) * shape.hidden_size + 2 * inputs * shape.intermediate_size;
    }
    int64_t bytes(const FfnWeights& ffn) const;
};

struct LayerWeights {
    const float* input_norm;
    RowsView qkv;
    const float* qkv_bias;
    const float* q_norm;
    const float* k_norm;
    RowsView o;
    const float* o_bias;
    const float* attention_output_norm;
    const float* post_norm;
    FfnWeights ffn;
    const float* ffn_output_norm;
};

struct ModelWeights {
    RowsView embed;
    RowsView head;
    const float* norm;
    std::vector<LayerWeights> layers;
};

// Throws std::runtime_error when a tensor is missing or not what the shape asks for.
ModelWeights view_weights(const Image& image, const ModelShape& shape);

// ||gate row|| * ||up row|| of every neuron of a layer, of the weights as the image stores them.
void neuron_magnitudes(const FfnWeights& ffn, const ModelShape& shape, float* out);

}  // namespace glass
