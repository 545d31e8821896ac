// Causal attention over the paged cache, grouped heads, sliding window, prefill and decode alike: softmax over spans of
// 128 keys, folded one after the other (online softmax, arXiv 2205.14135).
//
// Spans start at absolute positions that are multiples of kSpanKeys, and a query folds the spans it sees in ascending
// order with the same operations whatever shares its step, so its result depends neither on chunks nor on the batch. The
// spans of a decoding row may be computed by several threads; the last one done folds them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "kernels/kernels.h"
#include "kv_cache.h"
#include "thread_pool.h"

namespace glass {

inline constexpr int32_t kQueryTile = 16;  // tokens that pass over the keys together

// One row of the step: `num_tokens` tokens from position `start` on, which are tokens first_token … of the step.
struct AttentionRow {
    int32_t start;
    int32_t num_tokens;
    int32_t first_token;
    const int32_t* blocks;
};

// Queries or results of all heads of the step's tokens: num_heads * head_dim values each, `stride` apart.
template <typename T>
struct Heads {
    T* values;
    size_t stride;
};

class Attention {
public:
    Attention(const ModelShape& shape, const KvCache& cache, const Kernels& kernels, ThreadPool& pool);

    // Lay out the work of a step. `rows` must outlive the step's calls of `run`.
    void plan(const std::vector<AttentionRow>& rows);

    // softmax(score_scale * q k^T) v of every token against the keys the cache holds for it, its own included.
    // Query head i reads key head i / group.
    void run(int32_t layer, Heads<const float> q, Heads<float> out);

private:
    // Tokens of one row that pass over the keys together.
    struct Tile {
        const AttentionRow* row;
        int32_t first;  // token of the row
        int32_t count;
        int32_t first_partial;  // of a tile whose spans are computed apart, else -1
    };
    // All spans of a tile from the first key it sees on, or one of them.
    struct Task {
        int32_t tile;
        int32_t span;  // -1 = all
    };
    struct Memory;
    struct Call {
        int32_t layer;
        int32_t kv_head;
        Heads<const float> q;
        Heads<float> out;
    };

    void add_tile(const AttentionRow& row, int32_t first, int32_t count);
    int32_t first_span(const Tile& tile, int32_t layer) const;
    static int32_t end_span(const Tile& tile);
    void run_task(const Task& task, const Call& call, const Memory& memory);
    void load_queries(const Tile& tile, const Call& call, const Memory& memory) const;
    void attend(const Tile& tile, int32_t span, const Call& call, const Memory& memory, float* out,
                SoftmaxState* states) const;
    void run_all(const Tile& tile, const Call& call, const Memory& memory) const;
    void run_one(const Tile& tile, int32_t span, const Call& call, const Memory& memory);
    void finish(const Tile& tile, const Call& call, const Memory& memory) const;
    KeySpan view(const Tile& tile, int32_t span, const Call& call, const Memory& memory) const;
    void gather(const Tile& tile, int32_t position, int32_t count, const Call& call, const KeyGroup& to) const;
    float* partial(const Tile& tile, int32_t span, int32_t kv_head);

    const ModelShape& shape_;
    const KvCache& cache_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    int32_t group_;       // query heads per key head
    int32_t padded_dim_;  // head_dim in whole lanes
    bool direct_;         // 16 keys that follow each other lie in one block: kernels read the cache itself
    std::vector<Tile> tiles_;
    std::vector<Task> tasks_;
    int32_t num_partials_ = 0;
    Buffer<float> partials_;                       // (partials, kv heads): out and states of `group_` queries
    std::unique_ptr<std::atomic<int32_t>[]> left_;  // spans still to do, per (first partial of a tile, kv head)
    size_t num_left_ = 0;
    std::vector<Buffer<float>> memory_;  // one per thread
};

}  // namespace glass
