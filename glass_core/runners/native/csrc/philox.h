// Philox4x64-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011), a counter-based
// generator: no state, so any draw of any seed can be made anywhere. The words are those of numpy.random.Philox.
#pragma once

#include <array>
#include <cstdint>

namespace glass {

// The first word of the block at `counter`. `key` is the seed, lower half first.
inline uint64_t philox(std::array<uint64_t, 2> key, uint64_t counter) {
    constexpr int kRounds = 10;
    constexpr uint64_t kMultipliers[2] = {0xD2E7470EE14C6C93, 0xCA5A826395121157};
    constexpr uint64_t kWeyl[2] = {0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B};
    std::array<uint64_t, 4> block = {counter, 0, 0, 0};
    for (int round = 0; round < kRounds; ++round) {
        const auto first = static_cast<unsigned __int128>(kMultipliers[0]) * block[0];
        const auto second = static_cast<unsigned __int128>(kMultipliers[1]) * block[2];
        block = {static_cast<uint64_t>(second >> 64) ^ block[1] ^ key[0], static_cast<uint64_t>(second),
                 static_cast<uint64_t>(first >> 64) ^ block[3] ^ key[1], static_cast<uint64_t>(first)};
        key[0] += kWeyl[0];
        key[1] += kWeyl[1];
    }
    return block[0];
}

}  // namespace glass
