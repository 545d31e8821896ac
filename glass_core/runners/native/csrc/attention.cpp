#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "elementwise.h"

namespace glass {
namespace {

// total = total + part, both being of the same query over different keys.
GLASS_CLONES void fold(SoftmaxState& total, float* out, const SoftmaxState& part, const float* part_out, int32_t dim) {
    if (part.largest == -INFINITY) return;
    const float largest = std::max(total.largest, part.largest);
    const float old_scale = std::exp(total.largest - largest), new_scale = std::exp(part.largest - largest);
    total = {largest, total.sum * old_scale + part.sum * new_scale};
    for (int32_t d = 0; d < dim; ++d) out[d] = out[d] * old_scale + part_out[d] * new_scale;
}

}  // namespace

// Slices of one thread's memory, for up to `num_queries` (token, head) pairs.
struct Attention::Memory {
    float *q, *out, *part;         // (queries, padded_dim)
    SoftmaxState *states, *parts;  // (queries,)
    KeyRange* ranges;
    uint8_t* staged;  // (groups): keys, values and their scales, for a cache that is not read directly

    Memory(float* memory, size_t num_queries, size_t padded_dim) {
        staged = reinterpret_cast<uint8_t*>(memory);
        q = memory + kSpanGroups * staged_floats(padded_dim);
        out = q + num_queries * padded_dim;
        part = out + num_queries * padded_dim;
        states = reinterpret_cast<SoftmaxState*>(part + num_queries * padded_dim);
        parts = states + num_queries;
        ranges = reinterpret_cast<KeyRange*>(parts + num_queries);
    }
    // of 16 keys and values: two bytes a value, or one and scales
    static size_t staged_floats(size_t padded_dim) { return kKeyLanes * 2 * padded_dim; }
    static size_t size(size_t num_queries, size_t padded_dim) {
        return kSpanGroups * staged_floats(padded_dim) + num_queries * (3 * padded_dim + 6);
    }
    KeyGroup group(int32_t index, size_t padded_dim) const {
        uint8_t* base = staged + static_cast<size_t>(index) * staged_floats(padded_dim) * sizeof(float);
        const size_t part_bytes = kKeyLanes * padded_dim * sizeof(uint16_t);
        return {base, base + part_bytes, reinterpret_cast<float*>(base + 2 * part_bytes),
                reinterpret_cast<float*>(base + 3 * part_bytes)};
    }
};

Attention::Attention(const ModelShape& shape, const KvCache& cache, const Kernels& kernels, ThreadPool& pool)
    : shape_(shape),
      cache_(cache),
      kernels_(kernels),
      pool_(pool),
      group_(shape.num_heads / shape.num_kv_heads),
      padded_dim_((shape.head_dim + kKeyLanes - 1) / kKeyLanes * kKeyLanes),
      direct_(cache.block_size() % kKeyLanes == 0 && padded_dim_ == shape.head_dim),
      memory_(static_cast<size_t>(pool.num_threads())) {}

void Attention::plan(const std::vector<AttentionRow>& rows) {
    tiles_.clear();
    tasks_.clear();
    num_partials_ = 0;
    for (const AttentionRow& row : rows) {
        for (int32_t first = 0; first < row.num_tokens; first += kQueryTile) {
            add_tile(row, first, std::min(kQueryTile, row.num_tokens - first));
        }
    }
    // the longest first, so that no thread is left alone with one at the end
    const auto cost = [&](const Task& task) {
        const Tile& tile = tiles_[static_cast<size_t>(task.tile)];
        return task.span >= 0 ? 1 : tile.count * end_span(tile);
    };
    std::stable_sort(tasks_.begin(), tasks_.end(), [&](const Task& a, const Task& b) { return cost(a) > cost(b); });
    const auto padded = static_cast<size_t>(padded_dim_), group = static_cast<size_t>(group_);
    for (Buffer<float>& memory : memory_) memory.reserve(Memory::size(kQueryTile * group, padded));
    const size_t num_left = static_cast<size_t>(num_partials_) * static_cast<size_t>(shape_.num_kv_heads);
    partials_.reserve(num_left * group * (padded + 2));
    if (num_left > num_left_) {
        left_ = std::make_unique<std::atomic<int32_t>[]>(num_left);
        num_left_ = num_left;
    }
}

void Attention::add_tile(const AttentionRow& row, int32_t first, int32_t count) {
    const auto index = static_cast<int32_t>(tiles_.size());
    tiles_.push_back({&row, first, count, -1});
    const int32_t num_spans = end_span(tiles_.back());
    if (count > 1 || num_spans == 1) {
        tasks_.push_back({index, -1});
        return;
    }
    tiles_.back().first_partial = num_partials_;
    num_partials_ += num_spans;
    for (int32_t span = 0; span < num_spans; ++span) tasks_.push_back({index, span});
}

int32_t Attention::first_span(const Tile& tile, int32_t layer) const {
    const int32_t window = shape_.windows[static_cast<size_t>(layer)];
    return window > 0 ? std::max(0, tile.row->start + tile.first - window + 1) / kSpanKeys : 0;
}

int32_t Attention::end_span(const Tile& tile) {
    return (tile.row->start + tile.first + tile.count - 1) / kSpanKeys + 1;
}

void Attention::run(int32_t layer, Heads<const float> q, Heads<float> out) {
    const size_t heads = static_cast<size_t>(shape_.num_kv_heads), count = tasks_.size() * heads;
    for (const Tile& tile : tiles_) {
        if (tile.first_partial < 0) continue;
        std::atomic<int32_t>* left = left_.get() + static_cast<size_t>(tile.first_partial) * heads;
        const int32_t num_spans = end_span(tile) - first_span(tile, layer);
        for (size_t head = 0; head < heads; ++head) left[head].store(num_spans, std::memory_order_relaxed);
    }
    std::atomic<size_t> next{0};
    pool_.parallel([&](int thread, int) {
        Buffer<float>& buffer = memory_[static_cast<size_t>(thread)];
        const Memory memory(buffer.data(), static_cast<size_t>(kQueryTile * group_), static_cast<size_t>(padded_dim_));
        for (size_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
             i = next.fetch_add(1, std::memory_order_relaxed)) {
            run_task(tasks_[i / heads], {layer, static_cast<int32_t>(i % heads), q, out}, memory);
        }
    });
}

void Attention::run_task(const Task& task, const Call& call, const Memory& memory) {
    const Tile& tile = tiles_[static_cast<size_t>(task.tile)];
    if (task.span < 0) {
        run_all(tile, call, memory);
    } else if (task.span >= first_span(tile, call.layer)) {
        run_one(tile, task.span, call, memory);
    }
}

void Attention::load_queries(const Tile& tile, const Call& call, const Memory& memory) const {
    const int32_t dim = shape_.head_dim, num_queries = tile.count * group_;
    const float scale = shape_.score_scale;
    for (int32_t i = 0; i < num_queries; ++i) {
        const auto token = static_cast<size_t>(tile.row->first_token + tile.first + i / group_);
        const int32_t head = call.kv_head * group_ + i % group_;
        const float* from = call.q.values + token * call.q.stride + static_cast<size_t>(head * dim);
        float* to = memory.q + i * padded_dim_;
        for (int32_t d = 0; d < dim; ++d) to[d] = from[d] * scale;
        for (int32_t d = dim; d < padded_dim_; ++d) to[d] = 0.0f;
        memory.states[i] = {-INFINITY, 0.0f};
    }
    std::memset(memory.out, 0, sizeof(float) * static_cast<size_t>(num_queries * padded_dim_));
}

// One span for all queries of the tile.
void Attention::attend(const Tile& tile, int32_t span, const Call& call, const Memory& memory, float* out,
                       SoftmaxState* states) const {
    const int32_t window = shape_.windows[static_cast<size_t>(call.layer)], num_queries = tile.count * group_;
    for (int32_t i = 0; i < num_queries; ++i) {
        const int32_t last = tile.row->start + tile.first + i / group_ - span * kSpanKeys;
        memory.ranges[i] = {window > 0 ? last - window + 1 : 0, last};
    }
    kernels_.attend_span(view(tile, span, call, memory), memory.q, memory.ranges, num_queries, out, states);
}

void Attention::run_all(const Tile& tile, const Call& call, const Memory& memory) const {
    load_queries(tile, call, memory);
    const int32_t num_queries = tile.count * group_;
    for (int32_t span = first_span(tile, call.layer); span < end_span(tile); ++span) {
        attend(tile, span, call, memory, memory.part, memory.parts);
        for (int32_t i = 0; i < num_queries; ++i) {
            fold(memory.states[i], memory.out + i * padded_dim_, memory.parts[i], memory.part + i * padded_dim_, padded_dim_);
        }
    }
    finish(tile, call, memory);
}

// One span of a single token; whoever does the last one folds them all.
void Attention::run_one(const Tile& tile, int32_t span, const Call& call, const Memory& memory) {
    load_queries(tile, call, memory);
    const auto states_of = [&](float* part) { return reinterpret_cast<SoftmaxState*>(part + group_ * padded_dim_); };
    float* own = partial(tile, span, call.kv_head);
    attend(tile, span, call, memory, own, states_of(own));
    const size_t at = static_cast<size_t>(tile.first_partial) * static_cast<size_t>(shape_.num_kv_heads);
    if (left_[at + static_cast<size_t>(call.kv_head)].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (int32_t other = first_span(tile, call.layer); other < end_span(tile); ++other) {
        float* part = partial(tile, other, call.kv_head);
        for (int32_t i = 0; i < group_; ++i) {
            fold(memory.states[i], memory.out + i * padded_dim_, states_of(part)[i], part + i * padded_dim_, padded_dim_);
        }
    }
    finish(tile, call, memory);
}

float* Attention::partial(const Tile& tile, int32_t span, int32_t kv_head) {
    const size_t index = static_cast<size_t>(tile.first_partial + span) * static_cast<size_t>(shape_.num_kv_heads) +
                         static_cast<size_t>(kv_head);
    return partials_.data() + index * static_cast<size_t>(group_) * static_cast<size_t>(padded_dim_ + 2);
}

void Attention::finish(const Tile& tile, const Call& call, const Memory& memory) const {
    const int32_t dim = shape_.head_dim, num_queries = tile.count * group_;
    for (int32_t i = 0; i < num_queries; ++i) {
        const auto token = static_cast<size_t>(tile.row->first_token + tile.first + i / group_);
        const int32_t head = call.kv_head * group_ + i % group_;
        float* to = call.out.values + token * call.out.stride + static_cast<size_t>(head * dim);
        const float inverse = 1.0f / memory.states[i].sum;
        for (int32_t d = 0; d < dim; ++d) to[d] = memory.out[i * padded_dim_ + d] * inverse;
    }
}

KeySpan Attention::view(const Tile& tile, int32_t span, const Call& call, const Memory& memory) const {
    const int32_t block_size = cache_.block_size(), first_key = span * kSpanKeys;
    const int32_t num_keys = std::min(kSpanKeys, tile.row->start + tile.first + tile.count - first_key);
    const int32_t stride = direct_ ? block_size : kKeyLanes;
    KeySpan keys{cache_.layout().format, shape_.head_dim, padded_dim_, num_keys, stride, padded_dim_, stride, {}};
    for (int32_t done = 0; done < num_keys; done += kKeyLanes) {
        const int32_t position = first_key + done;
        KeyGroup& group = keys.groups[done / kKeyLanes];
        if (direct_) {
            group = cache_.at(call.layer, tile.row->blocks[position / block_size], call.kv_head, position % block_size);
        } else {
            group = memory.group(done / kKeyLanes, static_cast<size_t>(padded_dim_));
            gather(tile, position, std::min(kKeyLanes, num_keys - done), call, group);
        }
    }
    return keys;
}

// Keys and values of up to 16 positions, from however many blocks they lie in, side by side.
void Attention::gather(const Tile& tile, int32_t position, int32_t count, const Call& call, const KeyGroup& to) const {
    const KvLayout& layout = cache_.layout();
    const size_t width = layout.value_bytes(), row_bytes = width * static_cast<size_t>(layout.head_dim);
    const auto copy = [](const void* base, size_t from, const void* target, size_t at, size_t bytes) {
        std::memcpy(static_cast<uint8_t*>(const_cast<void*>(target)) + at, static_cast<const uint8_t*>(base) + from, bytes);
    };
    for (int32_t j = 0; j < count; ++j) {
        const int32_t block = tile.row->blocks[(position + j) / layout.block_size];
        const KeyGroup from = cache_.at(call.layer, block, call.kv_head, (position + j) % layout.block_size);
        const auto lane = static_cast<size_t>(j), block_size = static_cast<size_t>(layout.block_size);
        for (size_t d = 0; d < static_cast<size_t>(layout.head_dim); ++d) {
            copy(from.keys, d * block_size * width, to.keys, (d * kKeyLanes + lane) * width, width);
        }
        copy(from.values, 0, to.values, lane * static_cast<size_t>(padded_dim_) * width, row_bytes);
        if (layout.format == KvFormat::bf16) continue;
        for (size_t s = 0; s < static_cast<size_t>(layout.num_scales()); ++s) {
            const size_t source = s * block_size * sizeof(float), target = (s * kKeyLanes + lane) * sizeof(float);
            copy(from.key_scales, source, to.key_scales, target, sizeof(float));
            copy(from.value_scales, source, to.value_scales, target, sizeof(float));
        }
    }
}

}  // namespace glass
