#include "attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "elementwise.h"

// Here multiply-adds may fuse: the inner loops run over whole vectors only, every element in the same way.
#pragma GCC optimize("fp-contract=fast")
#pragma GCC diagnostic ignored "-Wpsabi"

namespace glass {
namespace {

constexpr int32_t kLanes = 16;
constexpr int32_t kKeyVectors = kKeyTile / kLanes;
using Vector = float __attribute__((vector_size(4 * kLanes)));
using Integers = int32_t __attribute__((vector_size(4 * kLanes)));

#define GLASS_INLINE inline __attribute__((always_inline))

GLASS_INLINE Vector load(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

GLASS_INLINE void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// exp of values <= 0 (see exponential.h); -inf gives 0.
GLASS_INLINE Vector vector_exp(Vector x) {
    const Vector clamped = x < -87.0f ? Vector{} - 87.0f : x;
    const Vector shifted = clamped * 1.44269504088896341f + 12582912.0f;
    const Vector n = shifted - 12582912.0f;
    const Vector r = (clamped - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
    Vector p = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
    p = p * r + (1.0f / 120.0f);
    p = p * r + (1.0f / 24.0f);
    p = p * r + (1.0f / 6.0f);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Integers exponent = (std::bit_cast<Integers>(shifted) - 0x4b400000 + 127) << 23;
    const Vector result = p * std::bit_cast<Vector>(exponent);
    return x < -87.0f ? Vector{} : result;
}

// out[j] = bf16 in[j], in whole vectors where possible
GLASS_INLINE void widen(const uint16_t* in, int32_t count, float* out) {
    for (int32_t j = 0; j < count; ++j) out[j] = std::bit_cast<float>(static_cast<uint32_t>(in[j]) << 16);
}

// `count` (up to the block size) keys of one block into columns of the tile (head_dim, kKeyTile).
GLASS_CLONES void widen_keys(const uint16_t* keys, int32_t block_size, int32_t head_dim, int32_t count, float* tile) {
    if (count == kLanes) {
        for (int32_t d = 0; d < head_dim; ++d) widen(keys + d * block_size, kLanes, tile + d * kKeyTile);
        return;
    }
    for (int32_t d = 0; d < head_dim; ++d) widen(keys + d * block_size, count, tile + d * kKeyTile);
}

GLASS_CLONES void widen_values(const uint16_t* values, int32_t head_dim, int32_t count, int32_t padded_dim,
                               float* tile) {
    for (int32_t j = 0; j < count; ++j) widen(values + j * head_dim, head_dim, tile + j * padded_dim);
}

// scores (kQueries, kKeyTile) of rows of q (padded_dim apart) against the key tile.
template <int kQueries>
GLASS_INLINE void score(const float* q, int32_t head_dim, int32_t padded_dim, const float* keys, float* scores) {
    Vector sums[kQueries][kKeyVectors] = {};
    for (int32_t d = 0; d < head_dim; ++d) {
        for (int v = 0; v < kKeyVectors; ++v) {
            const Vector key = load(keys + d * kKeyTile + v * kLanes);
            for (int i = 0; i < kQueries; ++i) sums[i][v] = sums[i][v] + key * q[i * padded_dim + d];
        }
    }
    for (int i = 0; i < kQueries; ++i) {
        for (int v = 0; v < kKeyVectors; ++v) store(scores + i * kKeyTile + v * kLanes, sums[i][v]);
    }
}

// out[i] = out[i] * rescale[i] + weights[i] · values, one vector of dimensions after the other.
template <int kQueries>
GLASS_INLINE void mix(const float* weights, const float* rescale, const float* values, int32_t padded_dim, float* out) {
    for (int32_t d = 0; d < padded_dim; d += kLanes) {
        Vector sums[kQueries];
        for (int i = 0; i < kQueries; ++i) sums[i] = load(out + i * padded_dim + d) * rescale[i];
        for (int32_t j = 0; j < kKeyTile; ++j) {
            const Vector value = load(values + j * padded_dim + d);
            for (int i = 0; i < kQueries; ++i) sums[i] = sums[i] + value * weights[i * kKeyTile + j];
        }
        for (int i = 0; i < kQueries; ++i) store(out + i * padded_dim + d, sums[i]);
    }
}

GLASS_CLONES void score_all(const float* q, int32_t num_queries, int32_t head_dim, int32_t padded_dim,
                            const float* keys, float* scores) {
    int32_t i = 0;
    for (; i + 6 <= num_queries; i += 6) score<6>(q + i * padded_dim, head_dim, padded_dim, keys, scores + i * kKeyTile);
    for (; i + 3 <= num_queries; i += 3) score<3>(q + i * padded_dim, head_dim, padded_dim, keys, scores + i * kKeyTile);
    for (; i < num_queries; ++i) score<1>(q + i * padded_dim, head_dim, padded_dim, keys, scores + i * kKeyTile);
}

GLASS_CLONES void mix_all(const float* weights, const float* rescale, int32_t num_queries, const float* values,
                          int32_t padded_dim, float* out) {
    int32_t i = 0;
    for (; i + 6 <= num_queries; i += 6) {
        mix<6>(weights + i * kKeyTile, rescale + i, values, padded_dim, out + i * padded_dim);
    }
    for (; i + 3 <= num_queries; i += 3) {
        mix<3>(weights + i * kKeyTile, rescale + i, values, padded_dim, out + i * padded_dim);
    }
    for (; i < num_queries; ++i) mix<1>(weights + i * kKeyTile, rescale + i, values, padded_dim, out + i * padded_dim);
}

// Running maximum and sum of the softmax of one query.
struct Softmax {
    float largest;
    float sum;
};

// Turn one query's scores into weights in place; keys outside [first, last] of the tile get exactly 0. Returns what the
// earlier sums must be multiplied by.
GLASS_CLONES float weigh(float* scores, int32_t first, int32_t last, Softmax& state) {
    Integers lane;
    for (int32_t j = 0; j < kLanes; ++j) lane[j] = j;
    const Vector nothing = Vector{} - INFINITY;
    Vector values[kKeyVectors], top = nothing;
    for (int v = 0; v < kKeyVectors; ++v) {
        const Integers key = lane + v * kLanes;
        values[v] = load(scores + v * kLanes);
        values[v] = ((key >= first) & (key <= last)) ? values[v] : nothing;
        top = values[v] > top ? values[v] : top;
    }
    float largest = state.largest;
    for (int32_t j = 0; j < kLanes; ++j) largest = top[j] > largest ? top[j] : largest;
    Vector sums{};
    for (int v = 0; v < kKeyVectors; ++v) {
        values[v] = vector_exp(values[v] - largest);
        sums += values[v];
        store(scores + v * kLanes, values[v]);
    }
    float sum = 0.0f;
    for (int32_t j = 0; j < kLanes; ++j) sum += sums[j];
    const float rescale = state.largest == largest ? 1.0f : std::exp(state.largest - largest);
    state.sum = state.sum * rescale + sum;
    state.largest = largest;
    return rescale;
}

}  // namespace

// Slices of one thread's scratch memory, for up to `num_queries` (token, head) pairs.
struct Attention::Scratch {
    float *q, *out, *scores, *rescale, *keys, *values;

    Scratch(float* memory, size_t num_queries, size_t padded_dim) {
        q = memory;
        out = q + num_queries * padded_dim;
        scores = out + num_queries * padded_dim;
        keys = scores + num_queries * kKeyTile;
        values = keys + padded_dim * kKeyTile;
        rescale = values + padded_dim * kKeyTile;
    }
    static size_t size(size_t num_queries, size_t padded_dim) {
        // the softmax states (two floats each) follow `rescale`
        return num_queries * (2 * padded_dim + kKeyTile + 3) + 2 * padded_dim * kKeyTile;
    }
};

Attention::Attention(const ModelShape& shape, KvCache& cache, ThreadPool& pool)
    : shape_(shape),
      cache_(cache),
      pool_(pool),
      group_(shape.num_heads / shape.num_kv_heads),
      padded_dim_((shape.head_dim + kLanes - 1) / kLanes * kLanes),
      scratch_size_(Scratch::size(static_cast<size_t>(kQueryTile * group_), static_cast<size_t>(padded_dim_))),
      scratch_(static_cast<size_t>(pool.num_threads())) {}

void Attention::plan(const std::vector<AttentionRow>& rows) {
    tasks_.clear();
    for (const AttentionRow& row : rows) {
        for (int32_t first = 0; first < row.num_tokens; first += kQueryTile) {
            tasks_.push_back(Task{&row, first, std::min(kQueryTile, row.num_tokens - first)});
        }
    }
    // the longest first, so that no thread is left alone with one at the end
    std::stable_sort(tasks_.begin(), tasks_.end(), [](const Task& a, const Task& b) {
        return a.row->start + a.first > b.row->start + b.first;
    });
    for (Buffer<float>& scratch : scratch_) scratch.reserve(scratch_size_);
}

void Attention::run(int32_t layer, const float* q, size_t q_stride, float* out, size_t out_stride) {
    std::atomic<size_t> next{0};
    const size_t heads = static_cast<size_t>(shape_.num_kv_heads), count = tasks_.size() * heads;
    pool_.parallel([&](int thread, int) {
        float* memory = scratch_[static_cast<size_t>(thread)].data();
        for (size_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
             i = next.fetch_add(1, std::memory_order_relaxed)) {
            attend(tasks_[i / heads], layer, static_cast<int32_t>(i % heads), q, q_stride, out, out_stride, memory);
        }
    });
}

// Keys and values of positions first_key … first_key + count - 1, from however many blocks they lie in.
void Attention::load_tile(const Task& task, int32_t layer, int32_t kv_head, int32_t first_key, int32_t count,
                          const Scratch& scratch) {
    const int32_t block_size = cache_.block_size(), dim = shape_.head_dim;
    for (int32_t done = 0; done < count;) {
        const int32_t position = first_key + done, slot = position % block_size;
        const int32_t run = std::min({block_size - slot, count - done, kLanes});
        const int32_t block = task.row->blocks[position / block_size];
        widen_keys(cache_.keys(layer, block, kv_head) + slot, block_size, dim, run, scratch.keys + done);
        widen_values(cache_.values(layer, block, kv_head) + slot * dim, dim, run, padded_dim_,
                     scratch.values + done * padded_dim_);
        done += run;
    }
}

void Attention::attend(const Task& task, int32_t layer, int32_t kv_head, const float* q, size_t q_stride, float* out,
                       size_t out_stride, float* memory) {
    const int32_t dim = shape_.head_dim, num_queries = task.count * group_;
    const Scratch scratch(memory, static_cast<size_t>(num_queries), static_cast<size_t>(padded_dim_));
    auto* states = reinterpret_cast<Softmax*>(scratch.rescale + num_queries);
    const size_t head_offset = static_cast<size_t>(kv_head) * static_cast<size_t>(group_ * dim);
    const auto token_of = [&](int32_t t) { return static_cast<size_t>(task.row->first_token + task.first + t); };
    std::memset(scratch.q, 0, sizeof(float) * 2 * static_cast<size_t>(num_queries * padded_dim_));  // q and out
    std::memset(scratch.values, 0, sizeof(float) * static_cast<size_t>(padded_dim_ * kKeyTile));
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (int32_t i = 0; i < num_queries; ++i) {
        const float* from = q + token_of(i / group_) * q_stride + head_offset + static_cast<size_t>(i % group_ * dim);
        for (int32_t d = 0; d < dim; ++d) scratch.q[i * padded_dim_ + d] = from[d] * scale;
        states[i] = Softmax{-INFINITY, 0.0f};
    }
    const int32_t first_position = task.row->start + task.first, last_position = first_position + task.count - 1;
    const int32_t window = shape_.windows[static_cast<size_t>(layer)];
    const int32_t first_key = window > 0 ? std::max(0, first_position - window + 1) : 0;
    for (int32_t tile = first_key / kKeyTile * kKeyTile; tile <= last_position; tile += kKeyTile) {
        load_tile(task, layer, kv_head, tile, std::min(kKeyTile, last_position + 1 - tile), scratch);
        score_all(scratch.q, num_queries, dim, padded_dim_, scratch.keys, scratch.scores);
        for (int32_t i = 0; i < num_queries; ++i) {
            const int32_t position = first_position + i / group_;
            const int32_t first = window > 0 ? position - window + 1 - tile : 0;
            const bool sees_none = position < tile || first >= kKeyTile;
            float* scores = scratch.scores + i * kKeyTile;
            if (sees_none) std::memset(scores, 0, sizeof(float) * kKeyTile);
            scratch.rescale[i] = sees_none ? 1.0f : weigh(scores, first, position - tile, states[i]);
        }
        mix_all(scratch.scores, scratch.rescale, num_queries, scratch.values, padded_dim_, scratch.out);
    }
    for (int32_t i = 0; i < num_queries; ++i) {
        float* to = out + token_of(i / group_) * out_stride + head_offset + static_cast<size_t>(i % group_ * dim);
        const float inverse = 1.0f / states[i].sum;
        for (int32_t d = 0; d < dim; ++d) to[d] = scratch.out[i * padded_dim_ + d] * inverse;
    }
}

}  // namespace glass
