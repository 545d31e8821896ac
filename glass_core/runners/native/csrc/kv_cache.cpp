#include "kv_cache.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

namespace glass {
namespace {

uint16_t to_bf16(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // keep NaN a NaN
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void store_bf16(const float* from, int32_t count, void* codes, int32_t stride) {
    auto* to = static_cast<uint16_t*>(codes);
    for (int32_t d = 0; d < count; ++d) to[static_cast<ptrdiff_t>(d) * stride] = to_bf16(from[d]);
}

// Scale and codes of up to 32 dimensions: scale = max|x| / 127. What is not finite makes the scale so, and with it all
// the key or value: it must not turn into numbers.
void store_int8(const float* from, int32_t count, int8_t* to, int32_t stride, float& scale) {
    float largest = 0.0f;
    bool finite = true;
    for (int32_t d = 0; d < count; ++d) {
        largest = std::max(largest, std::abs(from[d]));
        finite = finite && std::isfinite(from[d]);
    }
    const bool none = largest < 1e-36f;  // 127 / largest would overflow
    const float inverse = none || !finite ? 0.0f : 127.0f / largest;
    scale = !finite ? std::nanf("") : none ? 0.0f : largest / 127.0f;
    for (int32_t d = 0; d < count; ++d) {
        to[static_cast<ptrdiff_t>(d) * stride] = static_cast<int8_t>(std::nearbyint(finite ? from[d] * inverse : 0.0f));
    }
}

void store_groups(const float* from, int32_t head_dim, void* codes, int32_t stride, float* scales, int32_t scale_stride) {
    auto* to = static_cast<int8_t*>(codes);
    for (int32_t d = 0; d < head_dim; d += kKvScaleDims) {
        float& scale = scales[static_cast<ptrdiff_t>(d / kKvScaleDims) * scale_stride];
        store_int8(from + d, std::min(kKvScaleDims, head_dim - d), to + static_cast<ptrdiff_t>(d) * stride, stride, scale);
    }
}

const KvLayout& checked(const KvLayout& layout, int32_t num_blocks) {
    if (num_blocks < 1 || layout.block_size < 1) {
        throw std::invalid_argument("num_blocks and block_size must be positive");
    }
    return layout;
}

}  // namespace

size_t KvLayout::scale_bytes() const {
    if (format == KvFormat::bf16) return 0;
    return sizeof(float) * static_cast<size_t>(num_scales()) * static_cast<size_t>(block_size);
}

size_t KvLayout::code_bytes() const {
    return value_bytes() * static_cast<size_t>(head_dim) * static_cast<size_t>(block_size);
}

size_t KvLayout::block_bytes() const {
    return 2 * (scale_bytes() + code_bytes()) * static_cast<size_t>(num_kv_heads) * static_cast<size_t>(num_layers);
}

KvCache::KvCache(const KvLayout& layout, int32_t num_blocks)
    : layout_(checked(layout, num_blocks)),
      num_blocks_(num_blocks),
      pages_(layout.block_bytes() * static_cast<size_t>(num_blocks), "the KV cache") {}

uint8_t* KvCache::part(int32_t layer, int32_t block, int32_t kv_head) const {
    const size_t index = (static_cast<size_t>(block) * static_cast<size_t>(layout_.num_layers) +
                          static_cast<size_t>(layer)) * static_cast<size_t>(layout_.num_kv_heads) +
                         static_cast<size_t>(kv_head);
    return pages_.data() + index * 2 * (layout_.scale_bytes() + layout_.code_bytes());
}

KeyGroup KvCache::at(int32_t layer, int32_t block, int32_t kv_head, int32_t slot) const {
    const uint8_t* base = part(layer, block, kv_head);
    const size_t scale_bytes = layout_.scale_bytes(), width = layout_.value_bytes(), first = static_cast<size_t>(slot);
    const uint8_t *keys = base + 2 * scale_bytes, *values = keys + layout_.code_bytes();
    const bool scaled = layout_.format == KvFormat::int8;
    const auto* scales = reinterpret_cast<const float*>(base);
    return {keys + width * first, values + width * first * static_cast<size_t>(layout_.head_dim),
            scaled ? scales + first : nullptr, scaled ? scales + scale_bytes / sizeof(float) + first : nullptr};
}

void KvCache::write(int32_t layer, int32_t block, int32_t slot, const float* key, const float* value) {
    const int32_t dim = layout_.head_dim, size = layout_.block_size;
    for (int32_t head = 0; head < layout_.num_kv_heads; ++head, key += dim, value += dim) {
        const KeyGroup to = at(layer, block, head, slot);  // const for readers; the memory is ours
        if (layout_.format == KvFormat::bf16) {
            store_bf16(key, dim, const_cast<void*>(to.keys), size);
            store_bf16(value, dim, const_cast<void*>(to.values), 1);
        } else {
            store_groups(key, dim, const_cast<void*>(to.keys), size, const_cast<float*>(to.key_scales), size);
            store_groups(value, dim, const_cast<void*>(to.values), 1, const_cast<float*>(to.value_scales), size);
        }
    }
}

}  // namespace glass
