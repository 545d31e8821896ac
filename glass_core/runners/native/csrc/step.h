// One engine step in one call: all rows' tokens through the model, mixed prefill chunks and decode rows.
//
// Every token's result depends on its own sequence only, bit for bit: the kernels promise it for products, attention
// and FFN for their order of additions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "activations.h"
#include "attention.h"
#include "buffer.h"
#include "ffn.h"
#include "ffn_probe.h"
#include "image.h"
#include "kv_cache.h"
#include "model.h"
#include "plans.h"
#include "rotary.h"
#include "sampling.h"
#include "statistics.h"
#include "thread_pool.h"

namespace glass {

// One row: tokens at positions start, start + 1, …; `blocks` is its block table.
struct StepRow {
    const int32_t* tokens;
    int32_t num_tokens;
    int32_t start;
    const int32_t* blocks;
    int32_t num_blocks;
    int32_t plan;  // key, -1 = dense
    bool collect;
    int32_t num_logits;  // of so many last tokens the logits are wanted; 1 to sample from the row
    const float* scales;  // of a refined plan's thresholds, one per token; null = 1
};

// What a step yields. Pointers stay valid until the next step.
struct StepOutput {
    const float* logits;       // (tokens whose logits were wanted, vocab_size)
    std::vector<Drawn> drawn;  // of these tokens, in the order of rows and tokens
    FfnWork work;
    std::vector<CascadeWork> cascades;  // of the rows with a refined plan, in order
};

struct ModelOptions {
    int32_t num_threads;
    int32_t num_blocks;
    int32_t block_size;
    KvFormat kv_format;
    std::string isa;  // empty = the best one
};

class Model {
public:
    // Throws std::runtime_error for an image that does not hold the shape's tensors, std::invalid_argument otherwise.
    Model(Image& image, const ModelShape& shape, const ModelOptions& options);

    const ModelShape& shape() const { return shape_; }
    const char* isa() const { return kernels_.name; }
    int32_t num_threads() const { return pool_.num_threads(); }
    // For other work between steps.
    ThreadPool& pool() { return pool_; }
    PlanStore& plans() { return plans_; }
    FfnStep& ffn() { return ffn_; }

    // A probe of this model's FFN, whose lists keep `density` of the neurons. No step may run meanwhile.
    FfnProbe ffn_probe(float density) { return {shape_, weights_, plans_, kernels_, ffn_, density}; }

    // (num_layers, intermediate_size)
    void magnitudes(float* out) const;

    // `statistics` has one entry per row that collects, in order. Throws std::invalid_argument, before anything is
    // written, for a row that cannot be run.
    StepOutput step(const std::vector<StepRow>& rows, const Frequencies& frequencies,
                    const std::vector<StatisticsRow>& statistics, const std::vector<SampleRequest>& samples);

private:
    void check(const std::vector<StepRow>& rows, const Frequencies& frequencies) const;
    void check_statistics(const std::vector<StepRow>& rows, const std::vector<StatisticsRow>& statistics) const;
    void place(const std::vector<StepRow>& rows, const Frequencies& frequencies);
    void reserve();
    void embed(const std::vector<StepRow>& rows);
    void enter(int32_t layer);
    void attend(int32_t layer);
    void place_keys(int32_t layer, int32_t token);
    void join(float* output, const float* bias, const float* norm, int32_t token);
    void leave(int32_t layer, int32_t token);
    void fold_statistics(int32_t layer, int thread, int num_threads);
    void sample(const std::vector<StepRow>& rows, const std::vector<SampleRequest>& samples, StepOutput& output);
    void project(const RowsView& rows, int32_t num_rows, Activations& x, int32_t num_tokens, float* out,
                 size_t out_stride);
    void project_part(const RowsView& rows, int32_t num_rows, Activations& x, int32_t num_tokens, float* out,
                      size_t out_stride, int thread, int num_threads);
    void normalize_for_qkv(int32_t layer, int32_t token);
    int32_t qkv_parts(int32_t layer) const;
    void normalize(const float* hidden, const float* weight, Format format, Activations& to, int32_t token);

    // fn(token) for every token of the step, on all threads where that is worth a hand-over
    template <typename Fn>
    void for_tokens(int32_t num_tokens, const Fn& fn);

    struct Token {
        int32_t position;
        int32_t block;
        int32_t slot;
    };

    ModelShape shape_;
    ModelWeights weights_;
    const Kernels& kernels_;
    ThreadPool pool_;
    KvCache cache_;
    PlanStore plans_;
    Attention attention_;
    FfnStep ffn_;
    StatisticsFold statistics_;
    RotaryTables rotary_;

    int32_t num_tokens_ = 0;
    std::vector<Token> tokens_;
    std::vector<AttentionRow> attention_rows_;
    std::vector<const Plan*> token_plans_;
    std::vector<int32_t> collected_tokens_;
    std::vector<RefinedToken> refined_tokens_;
    int32_t num_collected_ = 0;
    Activations normed_;
    Activations mixed_;
    Buffer<float> hidden_;    // (tokens, hidden_size)
    Buffer<float> branch_;    // (tokens, hidden_size): what attention adds, or what an FFN does whose output is normed
    Buffer<float> qkv_;       // (tokens, parts, qkv_size)
    Buffer<float> logits_;
    std::vector<Sampler> samplers_;  // one per slot of a phase
};

}  // namespace glass
