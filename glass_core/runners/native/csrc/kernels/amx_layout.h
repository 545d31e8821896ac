// How the AMX kernels use the tiles: one configuration for all of them. A reduction is always one group of 32 values,
// because every group has a scale of its own. Included by kernels_amx_int8.cpp only.
#pragma once

#include "amx_tiles.h"
#include "common.h"

namespace glass {
namespace {

inline constexpr int32_t kTileRows = 16;      // of A and of the sums: weight rows (dots), activation rows (down)
inline constexpr int32_t kTileColumns = 16;   // of B and of the sums: activation rows (dots), outputs (down)
inline constexpr int32_t kTileSums = kTileRows * kTileColumns;
inline constexpr int32_t kBRows = kGroup / 4;  // B holds 4 values of the group side by side
inline constexpr size_t kBBytes = 64 * kBRows;

// Tile numbers.
inline constexpr int kSums = 0, kMoreSums = 1, kA = 2, kMoreA = 3, kB = 4;

inline constexpr TileConfig kTileConfig = {
    1,
    0,
    {},
    {4 * kTileColumns, 4 * kTileColumns, kGroup, kGroup, 4 * kTileColumns},
    {kTileRows, kTileRows, kTileRows, kTileRows, kBRows},
};

// Tile registers belong to the thread; holding them longer than a call would slow down every switch of threads.
class Tiles {
public:
    Tiles() { configure_tiles(kTileConfig); }
    ~Tiles() { release_tiles(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace glass
