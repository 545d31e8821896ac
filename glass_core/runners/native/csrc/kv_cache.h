// Keys and values of all sequences, bfloat16, in blocks of fixed size: address space reserved once, touched on use.
//
// Keys of a (block, head) are stored transposed, [head_dim][slot], so that scores of many keys are computed side by
// side; values are [slot][head_dim]. All layers of a block lie together, so that few pages are touched for a short
// sequence. Which block belongs to whom is the engine's business.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model.h"

namespace glass {

class KvCache {
public:
    // Throws std::runtime_error when the address space cannot be reserved.
    KvCache(const ModelShape& shape, int32_t num_blocks, int32_t block_size);
    ~KvCache();
    KvCache(const KvCache&) = delete;
    KvCache& operator=(const KvCache&) = delete;

    int32_t num_blocks() const { return num_blocks_; }
    int32_t block_size() const { return block_size_; }

    // (head_dim, block_size)
    uint16_t* keys(int32_t layer, int32_t block, int32_t kv_head) { return base_ + part(layer, block, kv_head); }
    // (block_size, head_dim)
    uint16_t* values(int32_t layer, int32_t block, int32_t kv_head) {
        return base_ + part(layer, block, kv_head) + part_size_;
    }

    // Store the key and value (num_kv_heads * head_dim each) of one position, rounded to nearest even.
    void write(int32_t layer, int32_t block, int32_t slot, const float* key, const float* value);

private:
    size_t part(int32_t layer, int32_t block, int32_t kv_head) const {
        const size_t index = (static_cast<size_t>(block) * static_cast<size_t>(num_layers_) +
                              static_cast<size_t>(layer)) * static_cast<size_t>(num_kv_heads_) +
                             static_cast<size_t>(kv_head);
        return 2 * part_size_ * index;
    }

    int32_t num_blocks_;
    int32_t block_size_;
    int32_t num_layers_;
    int32_t num_kv_heads_;
    int32_t head_dim_;
    size_t part_size_;  // values of one (block, head): keys or values
    size_t num_bytes_;
    uint16_t* base_;
};

}  // namespace glass
