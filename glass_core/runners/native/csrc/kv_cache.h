// Keys and values of all sequences, bfloat16 or int8, in blocks of fixed size: address space reserved once, touched on
// use.
//
// Keys of a (block, head) are stored transposed, [head_dim][slot], so that scores of many keys are computed side by
// side; values are [slot][head_dim]. int8: every 32 dimensions of a key or value share a float scale, stored as
// [head_dim / 32][slot]. All layers of a block lie together, so that few pages are touched for a short sequence. Which
// block belongs to whom is the engine's business.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_span.h"
#include "model.h"
#include "pages.h"

namespace glass {

// Sizes that a block's bytes follow from.
struct KvLayout {
    int32_t num_layers;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t block_size;
    KvFormat format;

    int32_t num_scales() const { return (head_dim + kKvScaleDims - 1) / kKvScaleDims; }  // per key or value
    size_t value_bytes() const { return format == KvFormat::int8 ? 1 : 2; }
    size_t scale_bytes() const;  // of the keys, or of the values, of one (layer, block, head)
    size_t code_bytes() const;
    size_t block_bytes() const;
};

class KvCache {
public:
    // Throws std::runtime_error when the address space cannot be reserved.
    KvCache(const KvLayout& layout, int32_t num_blocks);

    const KvLayout& layout() const { return layout_; }
    int32_t num_blocks() const { return num_blocks_; }
    int32_t block_size() const { return layout_.block_size; }

    // Where the key and value of one slot begin, and those after it: strides are block_size for keys and scales,
    // head_dim for values. Scales are null for bfloat16.
    KeyGroup at(int32_t layer, int32_t block, int32_t kv_head, int32_t slot) const;

    // Store the key and value (num_kv_heads * head_dim each) of one position, rounded to nearest even.
    void write(int32_t layer, int32_t block, int32_t slot, const float* key, const float* value);

private:
    uint8_t* part(int32_t layer, int32_t block, int32_t kv_head) const;

    KvLayout layout_;
    int32_t num_blocks_;
    LazyPages pages_;
};

}  // namespace glass
