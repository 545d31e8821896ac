#include "kv_cache.h"

#include <sys/mman.h>

#include <bit>
#include <stdexcept>
#include <string>

namespace glass {
namespace {

uint16_t to_bf16(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // keep NaN a NaN
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

KvCache::KvCache(const ModelShape& shape, int32_t num_blocks, int32_t block_size)
    : num_blocks_(num_blocks),
      block_size_(block_size),
      num_layers_(shape.num_layers),
      num_kv_heads_(shape.num_kv_heads),
      head_dim_(shape.head_dim),
      part_size_(static_cast<size_t>(block_size) * static_cast<size_t>(shape.head_dim)) {
    if (num_blocks < 1 || block_size < 1) throw std::invalid_argument("num_blocks and block_size must be positive");
    num_bytes_ = sizeof(uint16_t) * part(0, num_blocks, 0);
    void* memory = mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::runtime_error("cannot reserve " + std::to_string(num_bytes_) + " bytes for the KV cache");
    }
    base_ = static_cast<uint16_t*>(memory);
#ifdef MADV_HUGEPAGE
    madvise(memory, num_bytes_, MADV_HUGEPAGE);  // advice only: without it everything works, a little slower
#endif
}

KvCache::~KvCache() { munmap(base_, num_bytes_); }

void KvCache::write(int32_t layer, int32_t block, int32_t slot, const float* key, const float* value) {
    for (int32_t head = 0; head < num_kv_heads_; ++head) {
        uint16_t* key_column = keys(layer, block, head) + slot;
        uint16_t* value_row = values(layer, block, head) + static_cast<size_t>(slot) * static_cast<size_t>(head_dim_);
        const size_t first = static_cast<size_t>(head) * static_cast<size_t>(head_dim_);
        for (int32_t d = 0; d < head_dim_; ++d) {
            const auto at = static_cast<size_t>(d);
            key_column[at * static_cast<size_t>(block_size_)] = to_bf16(key[first + at]);
            value_row[at] = to_bf16(value[first + at]);
        }
    }
}

}  // namespace glass
