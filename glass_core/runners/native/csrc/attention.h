// Causal attention over the paged cache: online softmax over tiles of keys (arXiv 2205.14135), grouped heads, sliding
// window, prefill and decode alike.
//
// Key tiles start at absolute positions that are multiples of kKeyTile, and a query sees its tiles in ascending order
// with the same operations whatever shares its tile of queries, so its result does not depend on chunking or batch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kv_cache.h"
#include "thread_pool.h"

namespace glass {

inline constexpr int32_t kKeyTile = 32;
inline constexpr int32_t kQueryTile = 16;  // tokens that share the conversion of a key tile

// One row of the step: `num_tokens` tokens from position `start` on, which are tokens first_token … of the step.
struct AttentionRow {
    int32_t start;
    int32_t num_tokens;
    int32_t first_token;
    const int32_t* blocks;
};

class Attention {
public:
    Attention(const ModelShape& shape, KvCache& cache, ThreadPool& pool);

    // Lay out the work of a step. `rows` must outlive the step's calls of `run`.
    void plan(const std::vector<AttentionRow>& rows);

    // softmax(q k^T / sqrt(head_dim)) v of every token against the keys the cache holds for it, its own included.
    // q: num_heads * head_dim values a token, q_stride apart; out likewise. Query head i reads key head i / group.
    void run(int32_t layer, const float* q, size_t q_stride, float* out, size_t out_stride);

private:
    struct Task {
        const AttentionRow* row;
        int32_t first;  // token of the row
        int32_t count;
    };
    struct Scratch;

    void load_tile(const Task& task, int32_t layer, int32_t kv_head, int32_t first_key, int32_t count,
                   const Scratch& scratch);
    void attend(const Task& task, int32_t layer, int32_t kv_head, const float* q, size_t q_stride, float* out,
                size_t out_stride, float* memory);

    const ModelShape& shape_;
    KvCache& cache_;
    ThreadPool& pool_;
    int32_t group_;
    int32_t padded_dim_;  // head_dim in whole vectors
    size_t scratch_size_;
    std::vector<Task> tasks_;
    std::vector<Buffer<float>> scratch_;  // one per thread
};

}  // namespace glass
