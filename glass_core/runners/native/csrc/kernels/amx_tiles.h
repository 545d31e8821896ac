// The tile instructions the AMX kernels are written against. Tests compile the same kernels with GLASS_AMX_MODEL and a
// software model of these functions: most machines have no AMX, and wrong tiles must not wait for one to be noticed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glass {
namespace {

// What LDTILECFG reads: bytes of a row and number of rows of each tile.
struct alignas(64) TileConfig {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t num_rows[16];
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace glass

#if defined(GLASS_AMX_MODEL)
#include "amx_tiles_model.h"
#else

namespace glass {
namespace {

// Assembly instead of GCC 12's intrinsics, which do not say that they read memory: it may drop the stores before them.
inline void configure_tiles(const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int tile>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}

// Row i of the tile from base + i * stride.
template <int tile>
inline void load_tile(const void* base, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(tile) : "memory");
}

template <int tile>
inline void store_tile(void* base, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(tile) : "memory");
}

// sums[m][n] += the products of a[m][4k + i] and b[k][4n + i] over k and i < 4; signed bytes, 32-bit sums.
template <int sums, int a, int b>
inline void multiply_tiles() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
}

}  // namespace
}  // namespace glass

#endif
