#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "elementwise.h"
#include "rows.h"

namespace glass {
namespace {

constexpr int32_t kRowsPerTurn = 16;         // threads get whole multiples of these many weight rows
// Attention scores are products of two large numbers and go through an exponential: q and k are the most sensitive to
// rounding by far, so quantized weights meet their input in two parts of 8 bits.
constexpr int32_t kQkvParts = 2;
constexpr int64_t kSerialElements = 1 << 13;  // below this a hand-over to other threads costs more than it saves

ModelShape checked(const ModelShape& shape) {
    shape.check();
    return shape;
}

[[noreturn]] void refuse_row(size_t row, const std::string& problem) {
    throw std::invalid_argument("row " + std::to_string(row) + ": " + problem);
}

}  // namespace

Model::Model(Image& image, const ModelShape& shape, const ModelOptions& options)
    : shape_(checked(shape)),
      weights_(view_weights(image, shape_)),
      kernels_(choose_kernels(options.isa)),
      pool_(options.num_threads),
      cache_({shape_.num_layers, shape_.num_kv_heads, shape_.head_dim, options.block_size, options.kv_format},
             options.num_blocks),
      plans_(shape_, options.num_threads),
      attention_(shape_, cache_, kernels_, pool_),
      ffn_(shape_, plans_, kernels_, pool_),
      statistics_(shape_.intermediate_size),
      rotary_(shape_.num_ropes, shape_.head_dim),
      normed_(shape_.hidden_size),
      mixed_(shape_.q_size()),
      samplers_(static_cast<size_t>(options.num_threads)) {}

void Model::magnitudes(float* out) const {
    for (const LayerWeights& layer : weights_.layers) {
        neuron_magnitudes(layer.ffn, shape_, out);
        out += shape_.intermediate_size;
    }
}

template <typename Fn>
void Model::for_tokens(int32_t num_tokens, const Fn& fn) {
    if (static_cast<int64_t>(num_tokens) * shape_.hidden_size < kSerialElements) {
        for (int32_t token = 0; token < num_tokens; ++token) fn(token);
        return;
    }
    pool_.parallel([&](int thread, int num_threads) {
        const auto [first, last] = share(num_tokens, 1, thread, num_threads);
        for (int32_t token = first; token < last; ++token) fn(token);
    });
}

StepOutput Model::step(const std::vector<StepRow>& rows, const Frequencies& frequencies,
                       const std::vector<StatisticsRow>& statistics, const std::vector<SampleRequest>& samples) {
    check(rows, frequencies);
    check_statistics(rows, statistics);
    int64_t num_logits = 0;
    for (const StepRow& row : rows) num_logits += row.num_logits;
    check_requests(samples, num_logits, shape_.vocab_size);
    place(rows, frequencies);
    statistics_.plan(statistics, num_collected_);
    StepOutput output{};
    if (num_tokens_ == 0) return output;
    embed(rows);
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
        enter(layer);
        attend(layer);
        ffn_.run(weights_.layers[static_cast<size_t>(layer)].ffn, layer, normed_);
    }
    for_tokens(num_tokens_, [&](int32_t token) { leave(shape_.num_layers - 1, token); });
    if (!statistics_.empty()) {
        pool_.parallel([&](int thread, int n) { fold_statistics(shape_.num_layers - 1, thread, n); });
    }
    output.work = ffn_.work(weights_);
    output.cascades = ffn_.cascades(weights_);
    sample(rows, samples, output);
    return output;
}

void Model::check(const std::vector<StepRow>& rows, const Frequencies& frequencies) const {
    int64_t total = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
        const StepRow& row = rows[r];
        if (row.num_tokens < 1 || row.start < 0) refuse_row(r, "needs at least one token and a start of at least 0");
        const int64_t end = static_cast<int64_t>(row.start) + row.num_tokens;
        if (static_cast<int64_t>(row.num_blocks) * cache_.block_size() < end) refuse_row(r, "its blocks do not cover it");
        if (row.num_logits < 0 || row.num_logits > row.num_tokens) {
            refuse_row(r, "the logits of " + std::to_string(row.num_logits) + " of its " +
                              std::to_string(row.num_tokens) + " tokens are wanted");
        }
        if (row.collect && row.plan != -1) refuse_row(r, "statistics are collected from dense rows only");
        plans_.get(row.plan);
        for (int32_t i = 0; i < row.num_tokens; ++i) {
            if (row.tokens[i] < 0 || row.tokens[i] >= shape_.vocab_size) {
                refuse_row(r, "token id " + std::to_string(row.tokens[i]) + " lies outside the vocabulary");
            }
        }
        for (int32_t i = 0; i < row.num_blocks; ++i) {
            if (row.blocks[i] < 0 || row.blocks[i] >= cache_.num_blocks()) {
                refuse_row(r, "block " + std::to_string(row.blocks[i]) + " lies outside the cache");
            }
        }
        total += row.num_tokens;
    }
    if (total > (int64_t{1} << 20)) throw std::invalid_argument("a step takes at most 2^20 tokens");
    if (frequencies.num_rows != 1 && frequencies.num_rows != total) {
        throw std::invalid_argument("frequencies: expected one row or one per token");
    }
}

void Model::check_statistics(const std::vector<StepRow>& rows, const std::vector<StatisticsRow>& statistics) const {
    size_t next = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
        if (!rows[r].collect) continue;
        if (next == statistics.size() || statistics[next].stages.empty()) refuse_row(r, "has no place for its statistics");
        int32_t previous = 0;
        for (const StatisticsStage& stage : statistics[next].stages) {
            if (stage.length <= previous) refuse_row(r, "the lengths of its statistics do not ascend");
            previous = stage.length;
        }
        if (previous != rows[r].num_tokens) refuse_row(r, "its last statistics are not those of all its tokens");
        ++next;
    }
    if (next != statistics.size()) throw std::invalid_argument("more statistics than rows that collect");
}

// Where every token sits, what it is run with, and room for all of them.
void Model::place(const std::vector<StepRow>& rows, const Frequencies& frequencies) {
    tokens_.clear();
    token_plans_.clear();
    collected_tokens_.clear();
    attention_rows_.clear();
    refined_tokens_.clear();
    num_collected_ = 0;
    int32_t num_refined = 0;
    for (const StepRow& row : rows) {
        const auto first_token = static_cast<int32_t>(tokens_.size());
        attention_rows_.push_back({row.start, row.num_tokens, first_token, row.blocks});
        for (int32_t i = 0; i < row.num_tokens; ++i) {
            const int32_t position = row.start + i;
            tokens_.push_back({position, row.blocks[position / cache_.block_size()], position % cache_.block_size()});
            collected_tokens_.push_back(row.collect ? num_collected_++ : -1);
        }
        const Plan& plan = plans_.get(row.plan);
        token_plans_.insert(token_plans_.end(), static_cast<size_t>(row.num_tokens), &plan);
        const int32_t refined = plan.front().refined() ? num_refined++ : -1;
        for (int32_t i = 0; i < row.num_tokens; ++i) {
            refined_tokens_.push_back({refined, row.scales == nullptr ? 1.0f : row.scales[i]});
        }
    }
    num_tokens_ = static_cast<int32_t>(tokens_.size());
    if (num_tokens_ == 0) return;
    reserve();
    for (int32_t token = 0; token < num_tokens_; ++token) {
        rotary_.place(frequencies, token, tokens_[static_cast<size_t>(token)].position);
    }
    attention_.plan(attention_rows_);
    ffn_.plan(token_plans_, collected_tokens_, refined_tokens_);
}

void Model::reserve() {
    const auto tokens = static_cast<size_t>(num_tokens_), hidden = static_cast<size_t>(shape_.hidden_size);
    normed_.reserve(kQkvParts * num_tokens_);
    mixed_.reserve(num_tokens_);
    hidden_.reserve(tokens * hidden);
    branch_.reserve(tokens * hidden);
    qkv_.reserve(kQkvParts * tokens * static_cast<size_t>(shape_.qkv_size()));
    rotary_.reserve(num_tokens_);
}

void Model::embed(const std::vector<StepRow>& rows) {
    float* hidden = hidden_.data();
    for (const StepRow& row : rows) {
        for (int32_t i = 0; i < row.num_tokens; ++i, hidden += shape_.hidden_size) {
            decode_row(weights_.embed, static_cast<size_t>(row.tokens[i]), shape_.hidden_size, hidden);
            if (shape_.embedding_scale != 1.0f) scale(hidden, shape_.embedding_scale, shape_.hidden_size);
        }
    }
}

void Model::normalize(const float* hidden, const float* weight, Format format, Activations& to, int32_t token) {
    rms_norm(hidden, weight, shape_.hidden_size, shape_.norm_eps, to.values(token));
    if (format != Format::bf16) to.quantize(kernels_, token);
}

void Model::project(const RowsView& rows, int32_t num_rows, Activations& x, int32_t num_tokens, float* out,
                    size_t out_stride) {
    pool_.parallel([&](int thread, int num_threads) {
        project_part(rows, num_rows, x, num_tokens, out, out_stride, thread, num_threads);
    });
}

// What one thread has to do of it.
void Model::project_part(const RowsView& rows, int32_t num_rows, Activations& x, int32_t num_tokens, float* out,
                         size_t out_stride, int thread, int num_threads) {
    const auto [first, last] = share(num_rows, kRowsPerTurn, thread, num_threads);
    if (first == last) return;
    for (int32_t tile = 0; tile < num_tokens; tile += kTokenTile) {
        const ActivationView inputs = x.view(tile, std::min(kTokenTile, num_tokens - tile));
        kernels_.dot_rows(rows, nullptr, first, last - first, inputs, out + static_cast<size_t>(tile) * out_stride + first,
                          out_stride);
    }
}

// The input of a layer's q, k and v. What the layer before left to be done is part of the same phases: a hand-over to
// the other threads takes as long as the norms of several tokens.
void Model::enter(int32_t layer) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const int32_t parts = qkv_parts(layer), qkv_size = shape_.qkv_size();
    for_tokens(num_tokens_, [&](int32_t token) {
        if (layer > 0) leave(layer - 1, token);
        normalize_for_qkv(layer, token);
    });
    pool_.parallel([&](int thread, int num_threads) {
        if (layer > 0) fold_statistics(layer - 1, thread, num_threads);
        project_part(weights.qkv, qkv_size, normed_, parts * num_tokens_, qkv_.data(), static_cast<size_t>(qkv_size),
                     thread, num_threads);
    });
}

void Model::attend(int32_t layer) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const auto hidden_size = static_cast<size_t>(shape_.hidden_size), qkv_size = static_cast<size_t>(shape_.qkv_size());
    const auto hidden_of = [&](int32_t token) { return hidden_.data() + static_cast<size_t>(token) * hidden_size; };
    const int32_t parts = qkv_parts(layer);
    for_tokens(num_tokens_, [&](int32_t token) { place_keys(layer, token); });
    attention_.run(layer, {qkv_.data(), static_cast<size_t>(parts) * qkv_size}, {mixed_.values(0), mixed_.stride()});
    if (weights.o.format != Format::bf16) {
        for_tokens(num_tokens_, [&](int32_t token) { mixed_.quantize(kernels_, token); });
    }
    project(weights.o, shape_.hidden_size, mixed_, num_tokens_, branch_.data(), hidden_size);
    for_tokens(num_tokens_, [&](int32_t token) {
        join(branch_.data() + static_cast<size_t>(token) * hidden_size, weights.o_bias, weights.attention_output_norm, token);
        normalize(hidden_of(token), weights.post_norm, weights.ffn.gate_up.format, normed_, token);
    });
}

int32_t Model::qkv_parts(int32_t layer) const {
    return weights_.layers[static_cast<size_t>(layer)].qkv.format == Format::bf16 ? 1 : kQkvParts;
}

void Model::normalize_for_qkv(int32_t layer, int32_t token) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const int32_t parts = qkv_parts(layer);
    rms_norm(hidden_.data() + static_cast<size_t>(token) * static_cast<size_t>(shape_.hidden_size), weights.input_norm,
             shape_.hidden_size, shape_.norm_eps, normed_.values(parts * token));
    if (parts > 1) normed_.quantize_pair(kernels_, token);
}

// Bias, per-head norms and rotation of one token's q, k and v, in place; k and v go to the cache.
void Model::place_keys(int32_t layer, int32_t token) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const Token& at = tokens_[static_cast<size_t>(token)];
    const int32_t dim = shape_.head_dim, half = dim / 2;
    const int32_t parts = qkv_parts(layer);
    float* q = qkv_.data() + static_cast<size_t>(parts * token) * static_cast<size_t>(shape_.qkv_size());
    if (parts > 1) add(q, q + shape_.qkv_size(), shape_.qkv_size());
    float* k = q + shape_.q_size();
    if (weights.qkv_bias != nullptr) add(q, weights.qkv_bias, shape_.qkv_size());
    const Rotation rotation = rotary_.at(token, shape_.rope_indices[static_cast<size_t>(layer)]);
    const int32_t num_heads = shape_.num_heads + shape_.num_kv_heads;  // the heads of k follow those of q
    for (int32_t head = 0; shape_.qk_norm && head < num_heads; ++head) {
        const float* norm = head < shape_.num_heads ? weights.q_norm : weights.k_norm;
        rms_norm(q + head * dim, norm, dim, shape_.norm_eps, q + head * dim);
    }
    rotate(q, num_heads, rotation.cosines, rotation.sines, half);
    cache_.write(layer, at.block, at.slot, k, k + shape_.kv_size());
}

// Adds what attention or FFN gave to a token's hidden state: as it is, or normed, for which `output` is written to.
void Model::join(float* output, const float* bias, const float* norm, int32_t token) {
    float* hidden = hidden_.data() + static_cast<size_t>(token) * static_cast<size_t>(shape_.hidden_size);
    if (norm != nullptr) {
        if (bias != nullptr) add(output, bias, shape_.hidden_size);
        rms_norm(output, norm, shape_.hidden_size, shape_.norm_eps, output);
        bias = nullptr;
    }
    add(hidden, output, shape_.hidden_size);
    if (bias != nullptr) add(hidden, bias, shape_.hidden_size);
}

// Adds what a layer's FFN gave to a token, and notes its z where that is collected.
void Model::leave(int32_t layer, int32_t token) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    const size_t place = static_cast<size_t>(token) * static_cast<size_t>(shape_.hidden_size);
    const bool normed = weights.ffn_output_norm != nullptr;
    float* sum = normed ? branch_.data() + place : hidden_.data() + place;
    if (normed) std::fill_n(sum, shape_.hidden_size, 0.0f);
    for (int32_t thread = 0; thread < ffn_.num_partials(); ++thread) {
        add(sum, ffn_.partial(thread, token), shape_.hidden_size);
    }
    if (normed) {
        join(sum, weights.ffn.down_bias, weights.ffn_output_norm, token);
    } else if (weights.ffn.down_bias != nullptr) {
        add(sum, weights.ffn.down_bias, shape_.hidden_size);
    }
    const int32_t collected = collected_tokens_[static_cast<size_t>(token)];
    if (collected >= 0) statistics_.measure(collected, ffn_.collected(collected));
}

// One thread's neurons.
void Model::fold_statistics(int32_t layer, int thread, int num_threads) {
    if (statistics_.empty()) return;
    const auto [first, last] = share(shape_.intermediate_size, kGroup, thread, num_threads);
    statistics_.fold(layer, ffn_.collected(0), first, last);
}

void Model::sample(const std::vector<StepRow>& rows, const std::vector<SampleRequest>& samples, StepOutput& output) {
    const auto vocab = static_cast<size_t>(shape_.vocab_size), hidden_size = static_cast<size_t>(shape_.hidden_size);
    int32_t num_sampled = 0, end = 0;
    for (const StepRow& row : rows) {
        end += row.num_tokens;
        for (int32_t token = end - row.num_logits; token < end; ++token) {
            normalize(hidden_.data() + static_cast<size_t>(token) * hidden_size, weights_.norm, weights_.head.format,
                      normed_, num_sampled++);
        }
    }
    if (num_sampled == 0) return;
    float* logits = logits_.reserve(static_cast<size_t>(num_sampled) * vocab);
    project(weights_.head, shape_.vocab_size, normed_, num_sampled, logits, vocab);
    output.logits = logits;
    output.drawn.resize(static_cast<size_t>(num_sampled));
    pool_.parallel([&](int thread, int num_threads) {
        for (auto i = static_cast<size_t>(thread); i < samples.size(); i += static_cast<size_t>(num_threads)) {
            output.drawn[i] = samplers_[static_cast<size_t>(thread)].draw(logits + i * vocab, shape_.vocab_size, samples[i]);
        }
    });
}

}  // namespace glass
