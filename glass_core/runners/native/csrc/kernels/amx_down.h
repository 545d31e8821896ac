// AMX down projection for several activation rows: the A tiles are the two bytes of z of 16 rows, the B tile is a group
// of 32 neurons for 16 outputs, interleaved as avx512_down.h does it. Rounding, sums and their order are that file's,
// so that a row gets the bits the AVX-512 kernels give it. Included by kernels_amx_int8.cpp only.
#pragma once

#include "amx_layout.h"
#include "avx512_down.h"

namespace glass {
namespace {

// The sums of one product of each byte of z.
struct DownTiles {
    alignas(64) int32_t high[kTileSums];
    alignas(64) int32_t low[kTileSums];
};

// The codes of a block of 16*V outputs to the B tiles: row `quad` of output vector v at to + 64 * (V * quad + v).
template <Format F, int V>
inline void unpack_block(const Group512& group, int32_t h, int8_t* to) {
    for (int32_t quad = 0; quad < kBRows; ++quad) {
        __m512i codes[V];
        if (quad < group.quads) {
            load_quad<F, V>(group, quad, h / (F == Format::q4 ? 2 : 1), codes);
        } else {
            for (int v = 0; v < V; ++v) codes[v] = _mm512_setzero_si512();
        }
        for (int v = 0; v < V; ++v) {
            // 8-bit codes lose their offset of 128
            if constexpr (F == Format::q8) codes[v] = _mm512_xor_si512(codes[v], _mm512_set1_epi8(-128));
            _mm512_store_si512(to + 64 * (V * quad + v), codes[v]);
        }
    }
}

// The two products of 16 rows' z with 16 outputs.
inline void multiply_z(const Z512* z, const int8_t* codes, size_t codes_stride, DownTiles& sums) {
    load_tile<kA>(z->high, sizeof(Z512));
    load_tile<kMoreA>(z->low, sizeof(Z512));
    load_tile<kB>(codes, codes_stride);
    zero_tile<kSums>();
    zero_tile<kMoreSums>();
    multiply_tiles<kSums, kA, kB>();
    multiply_tiles<kMoreSums, kMoreA, kB>();
    store_tile<kSums>(sums.high, 4 * kTileColumns);
    store_tile<kMoreSums>(sums.low, 4 * kTileColumns);
}

template <Format F, int V>
inline void down_block_tiles(const Group512& group, int32_t h, const Z512* z, int32_t active, int8_t* codes,
                             DownTiles& tiles, float* y, size_t y_stride) {
    prefetch_scales<F, V>(group, h);
    unpack_block<F, V>(group, h, codes);
    DownScales<F, V> scales;
    load_scales(group, h, scales);
    for (int32_t t0 = 0; t0 < active; t0 += kTileRows) {
        const int32_t count = active - t0 < kTileRows ? active - t0 : kTileRows;
        for (int v = 0; v < V; ++v) {
            multiply_z(z + t0, codes + 64 * v, 64 * V, tiles);
            for (int32_t t = 0; t < count; ++t) {
                const DownSums<1> sums = {{_mm512_load_si512(tiles.high + 16 * t)}, {_mm512_load_si512(tiles.low + 16 * t)}};
                float* to = y + z[t0 + t].row * y_stride + h + 16 * v;
                add_to_outputs<F, 1>(sums, z[t0 + t], scales.d + v, scales.m + v, to);
            }
        }
    }
}

template <Format F>
inline void down_group_tiles(const Group512& group, int32_t hidden_padded, const Z512* z, int32_t active, int8_t* codes,
                             DownTiles& tiles, float* y, size_t y_stride) {
    constexpr int V = F == Format::q4 ? 8 : 4;
    int32_t h = 0;
    for (; h + 16 * V <= hidden_padded; h += 16 * V) {
        down_block_tiles<F, V>(group, h, z, active, codes, tiles, y, y_stride);
    }
    if (h < hidden_padded) down_block_tiles<F, 4>(group, h, z, active, codes, tiles, y, y_stride);
}

inline constexpr size_t kDownCodesBytes = 64 * 8 * kBRows;

template <Format F>
void accumulate_down_tiles(const DownView& down, const int32_t* index, int32_t n, const float* z, size_t z_stride,
                           int32_t num_rows, float* y, size_t y_stride) {
    // whole tiles of rows: those past the active ones are read, and what comes of them is not used
    const int32_t padded_rows = (num_rows + kTileRows - 1) / kTileRows * kTileRows;
    const size_t z_bytes = padded_rows * sizeof(Z512);
    uint8_t* scratch = static_cast<uint8_t*>(kernel_scratch(sizeof(DownTiles) + kDownCodesBytes + z_bytes));
    DownTiles& tiles = *reinterpret_cast<DownTiles*>(scratch);
    int8_t* codes = reinterpret_cast<int8_t*>(scratch + sizeof(DownTiles));
    Z512* rows = reinterpret_cast<Z512*>(scratch + sizeof(DownTiles) + kDownCodesBytes);
    __builtin_memset(rows, 0, z_bytes);
    const Tiles configured;
    for_groups(down, index, n, z, z_stride, num_rows, rows, [&](const Group512& group, int32_t active) {
        down_group_tiles<F>(group, down.hidden_padded, rows, active, codes, tiles, y, y_stride);
    });
}

}  // namespace
}  // namespace glass
