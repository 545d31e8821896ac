// The AMX tile instructions in plain C++, after the pseudo-code of the Intel SDM (volume 1 chapter 18, volume 2
// LDTILECFG, TILELOADD, TILESTORED, TDPBSSD, TILEZERO, TILERELEASE; palette 1). What would fault ends the program.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace glass {
namespace {

struct TileRegister {
    uint8_t rows[16][64];
};

// Tile state belongs to the thread. `configured` is false in the init state.
struct TileState {
    bool configured = false;
    TileConfig config{};
    TileRegister tiles[8]{};
};

inline TileState& tile_state() {
    thread_local TileState state;
    return state;
}

inline void fault_unless(bool condition, const char* instruction) {
    if (condition) return;
    std::fprintf(stderr, "%s would fault\n", instruction);
    std::abort();
}

inline bool all_zero(const void* bytes, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        if (static_cast<const uint8_t*>(bytes)[i] != 0) return false;
    }
    return true;
}

inline void configure_tiles(const TileConfig& config) {
    TileState& state = tile_state();
    if (config.palette == 0) {
        state = TileState{};
        return;
    }
    fault_unless(config.palette == 1 && all_zero(config.reserved, sizeof config.reserved), "ldtilecfg");
    fault_unless(all_zero(config.row_bytes + 8, 16) && all_zero(config.num_rows + 8, 8), "ldtilecfg");
    for (int tile = 0; tile < 8; ++tile) {
        const bool none = config.row_bytes[tile] == 0;
        fault_unless(config.row_bytes[tile] <= 64 && config.num_rows[tile] <= 16, "ldtilecfg");
        fault_unless(none == (config.num_rows[tile] == 0), "ldtilecfg");
    }
    state.configured = true;
    state.config = config;
    std::memset(state.tiles, 0, sizeof state.tiles);
}

inline void release_tiles() { tile_state() = TileState{}; }

// The tile's register, for an instruction that takes it with the shape it is configured to.
inline TileRegister& usable_tile(int tile, const char* instruction) {
    TileState& state = tile_state();
    fault_unless(state.configured && state.config.num_rows[tile] > 0, instruction);
    return state.tiles[tile];
}

template <int tile>
inline void zero_tile() {
    std::memset(&usable_tile(tile, "tilezero"), 0, sizeof(TileRegister));
}

template <int tile>
inline void load_tile(const void* base, size_t stride) {
    TileRegister& to = usable_tile(tile, "tileloadd");
    const TileState& state = tile_state();
    fault_unless(state.config.start_row == 0, "tileloadd");
    std::memset(&to, 0, sizeof to);
    for (int row = 0; row < state.config.num_rows[tile]; ++row) {
        std::memcpy(to.rows[row], static_cast<const uint8_t*>(base) + row * stride, state.config.row_bytes[tile]);
    }
}

template <int tile>
inline void store_tile(void* base, size_t stride) {
    const TileRegister& from = usable_tile(tile, "tilestored");
    const TileState& state = tile_state();
    for (int row = 0; row < state.config.num_rows[tile]; ++row) {
        std::memcpy(static_cast<uint8_t*>(base) + row * stride, from.rows[row], state.config.row_bytes[tile]);
    }
}

inline int32_t dword_at(const uint8_t* row, int n) {
    int32_t value;
    std::memcpy(&value, row + 4 * n, 4);
    return value;
}

// DPBD: the sum and four products of signed bytes.
inline int32_t add_products(int32_t sum, const uint8_t* a, const uint8_t* b) {
    for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a[i]) * static_cast<int8_t>(b[i]);
    return sum;
}

template <int sums, int a, int b>
inline void multiply_tiles() {
    static_assert(sums != a && sums != b && a != b, "tdpbssd would fault");
    TileRegister& to = usable_tile(sums, "tdpbssd");
    const TileRegister &left = usable_tile(a, "tdpbssd"), &right = usable_tile(b, "tdpbssd");
    const TileConfig& config = tile_state().config;
    fault_unless(config.row_bytes[sums] % 4 == 0 && config.row_bytes[a] % 4 == 0 && config.row_bytes[b] % 4 == 0, "tdpbssd");
    fault_unless(config.num_rows[sums] == config.num_rows[a], "tdpbssd");
    fault_unless(config.row_bytes[a] / 4 == config.num_rows[b], "tdpbssd");
    fault_unless(config.row_bytes[sums] == config.row_bytes[b], "tdpbssd");
    for (int m = 0; m < config.num_rows[sums]; ++m) {
        for (int n = 0; n < config.row_bytes[sums] / 4; ++n) {
            int32_t sum = dword_at(to.rows[m], n);
            for (int k = 0; k < config.row_bytes[a] / 4; ++k) sum = add_products(sum, left.rows[m] + 4 * k, right.rows[k] + 4 * n);
            std::memcpy(to.rows[m] + 4 * n, &sum, 4);
        }
    }
}

}  // namespace
}  // namespace glass
