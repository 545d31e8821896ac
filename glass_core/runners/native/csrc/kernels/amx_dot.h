// AMX dot products for several activation rows: 16 weight rows are the A tile, 16 activation rows the B tile, one
// product per group of 32. Scales and the order of the sums are those of avx512_fold.h, lane for lane, so that a row
// gets the bits the AVX-512 kernels give it. Included by kernels_amx_int8.cpp only.
#pragma once

#include "amx_layout.h"
#include "avx512_fold.h"

namespace glass {
namespace {

// One block of 16 activation rows, by group; rows past the last are zeros.
struct PackedBlock {
    int8_t* codes;  // [groups][kBRows][16 rows][4 values]
    float* scales;  // [groups][16 rows]
    float* sums;    // [groups][16 rows]
};

// 16 weight rows, unpacked.
struct UnpackedRows {
    int8_t* codes;  // [groups][16 rows][32 values], signed
    float* d;       // [16 rows][stride]
    float* m;       // [16 rows][stride], q4
    int32_t stride;
};

inline void pack_chunk(const ActivationView& x, int32_t t0, int32_t count, int32_t chunk, int8_t* to) {
    __m512i v[16];
    for (int32_t i = 0; i < 16; ++i) {
        v[i] = i < count ? _mm512_loadu_si512(x.codes + (t0 + i) * x.codes_stride + kChunk * chunk) : _mm512_setzero_si512();
    }
    transpose16(v);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(to + 64 * i, v[i]);
}

inline void pack_scales(const float* from, size_t stride, int32_t count, int32_t groups, float* to) {
    for (int32_t g = 0; g < groups; g += 16) {
        const __mmask16 lanes = first_lanes(groups - g < 16 ? groups - g : 16);
        __m512i v[16];
        for (int32_t i = 0; i < 16; ++i) {
            v[i] = i < count ? _mm512_maskz_loadu_epi32(lanes, from + i * stride + g) : _mm512_setzero_si512();
        }
        transpose16(v);
        alignas(64) __m512i columns[16];
        for (int i = 0; i < 16; ++i) columns[i] = v[i];
        for (int32_t i = 0; i < 16 && g + i < groups; ++i) _mm512_store_si512(to + 16 * (g + i), columns[i]);
    }
}

inline void pack_block(const ActivationView& x, int32_t t0, int32_t groups, const PackedBlock& to) {
    const int32_t count = x.num_rows - t0 < 16 ? x.num_rows - t0 : 16;
    for (int32_t chunk = 0; chunk < groups / 2; ++chunk) pack_chunk(x, t0, count, chunk, to.codes + 2 * kBBytes * chunk);
    pack_scales(x.scales + t0 * x.groups_stride, x.groups_stride, count, groups, to.scales);
    pack_scales(x.sums + t0 * x.groups_stride, x.groups_stride, count, groups, to.sums);
}

// One weight row's codes to row r of every A tile; 4-bit codes are small enough to be signed, 8-bit ones lose their
// offset of 128.
template <Format F>
inline void unpack_codes(const uint8_t* row, const uint8_t* ahead, int32_t groups, int32_t r, int8_t* to) {
    constexpr size_t tile_bytes = kTileRows * kGroup;
    for (int32_t chunk = 0; chunk < groups / 2; ++chunk) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + (F == Format::q4 ? 32 : 64) * chunk), _MM_HINT_T0);
        __m512i codes = load_codes<F>(row, chunk);
        if constexpr (F == Format::q8) codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
        int8_t* tile = to + 2 * tile_bytes * chunk + kGroup * r;
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile), _mm512_castsi512_si256(codes));
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile + tile_bytes), _mm512_extracti64x4_epi64(codes, 1));
    }
}

// One weight row's scales as floats.
template <Format F>
inline void unpack_scales(const uint8_t* scales, int32_t groups, float* d, float* m) {
    for (int32_t g = 0; g < groups; g += 16) {
        const __mmask16 lanes = first_lanes(groups - g < 16 ? groups - g : 16);
        if constexpr (F == Format::q4) {
            const __m512i pairs = _mm512_maskz_loadu_epi32(lanes, scales + 4 * g);
            _mm512_store_ps(d + g, low_halves(pairs));
            _mm512_store_ps(m + g, high_halves(pairs));
        } else {
            _mm512_store_ps(d + g, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, scales + 2 * g)));
        }
    }
}

// Weight rows i .. i + 15 of n; the last one stands in for those past it.
template <Format F>
inline void unpack_rows(const RowsView& rows, const int32_t* index, int32_t first, int32_t i, int32_t n,
                        const UnpackedRows& to) {
    const int32_t groups = rows.cols_padded / kGroup;
    for (int32_t r = 0; r < kTileRows; ++r) {
        const uint8_t* row = row_at(rows, index, first, i + r < n ? i + r : n - 1);
        const uint8_t* ahead = row_at(rows, index, first, i + r + kTileRows < n ? i + r + kTileRows : n - 1);
        unpack_codes<F>(row, ahead, groups, r, to.codes);
        unpack_scales<F>(row + groups * (F == Format::q4 ? 16 : 32), groups, to.d + r * to.stride, to.m + r * to.stride);
    }
}

// sums[r] += d * scale * dot + m * sum of group g; lanes are activation rows. `dots` is room for one tile.
template <Format F>
inline void add_group(const UnpackedRows& w, const PackedBlock& x, int32_t g, int32_t* dots, float* sums) {
    load_tile<kA>(w.codes + static_cast<size_t>(kTileRows) * kGroup * g, kGroup);
    load_tile<kB>(x.codes + kBBytes * g, 64);
    zero_tile<kSums>();
    multiply_tiles<kSums, kA, kB>();
    store_tile<kSums>(dots, 4 * kTileColumns);
    const __m512 scale = _mm512_load_ps(x.scales + 16 * g), sum = _mm512_load_ps(x.sums + 16 * g);
    for (int32_t r = 0; r < kTileRows; ++r) {
        const __m512 d = _mm512_mul_ps(_mm512_set1_ps(w.d[r * w.stride + g]), scale);
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(dots + 16 * r));
        __m512 total = _mm512_fmadd_ps(dot, d, _mm512_load_ps(sums + 16 * r));
        if constexpr (F == Format::q4) total = _mm512_fmadd_ps(_mm512_set1_ps(w.m[r * w.stride + g]), sum, total);
        _mm512_store_ps(sums + 16 * r, total);
    }
}

inline void clear_sums(float* sums) {
    for (int32_t r = 0; r < kTileRows; ++r) _mm512_store_ps(sums + 16 * r, _mm512_setzero_ps());
}

// to = from, or to + from.
inline void join_sums(const float* from, bool start, float* to) {
    for (int32_t r = 0; r < kTileRows; ++r) {
        const __m512 value = _mm512_load_ps(from + 16 * r);
        _mm512_store_ps(to + 16 * r, start ? value : _mm512_add_ps(_mm512_load_ps(to + 16 * r), value));
    }
}

// Room for a tile of integers and for the float sums of one at each level of the fold.
struct FoldSpace {
    alignas(64) int32_t dots[kTileSums];
    alignas(64) float partial[kTileSums];
    alignas(64) float fold[kTileSums];
    alignas(64) float total[kTileSums];
};

// space.total[r][t]: the dot products of 16 weight rows and 16 activation rows.
template <Format F>
inline void dot_tiles(const UnpackedRows& w, const PackedBlock& x, int32_t groups, FoldSpace& space) {
    const int32_t whole = groups / 16 * 16;
    clear_sums(space.total);
    for (int32_t j = 0; j < 4 && whole > 0; ++j) {
        for (int32_t lane = j; lane < 16; lane += 4) {
            clear_sums(space.partial);
            for (int32_t g = kLaneGroup<F>[lane]; g < whole; g += 16) add_group<F>(w, x, g, space.dots, space.partial);
            join_sums(space.partial, lane == j, space.fold);
        }
        join_sums(space.fold, j == 0, space.total);
    }
    for (int32_t g = whole; g < groups; ++g) add_group<F>(w, x, g, space.dots, space.total);
}

// totals[r][t] to out[t * out_stride + r], r < num_rows, t < num_tokens.
inline void store_totals(const float* totals, int32_t num_rows, int32_t num_tokens, float* out, size_t out_stride) {
    __m512i v[16];
    for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(totals + 16 * i);
    transpose16(v);
    alignas(64) __m512i columns[16];
    for (int i = 0; i < 16; ++i) columns[i] = v[i];
    for (int32_t t = 0; t < num_tokens; ++t) {
        _mm512_mask_storeu_ps(out + t * out_stride, first_lanes(num_rows), _mm512_castsi512_ps(columns[t]));
    }
}

// Hands out the pieces of the scratch block, each aligned to 64.
class Scratch {
public:
    explicit Scratch(uint8_t* block) : next_(block) {}

    template <typename T>
    T* take(size_t count) {
        T* piece = reinterpret_cast<T*>(next_);
        next_ += (count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

private:
    uint8_t* next_;
};

inline size_t tiles_scratch(int32_t groups, int32_t num_blocks) {
    const size_t size = static_cast<size_t>(groups), stride = (size + 15) / 16 * 16;
    const size_t block = size * (kBBytes + 2 * 16 * sizeof(float));
    return sizeof(FoldSpace) + size * kTileRows * kGroup + 2 * stride * 16 * sizeof(float) + num_blocks * (block + 3 * 64);
}

template <Format F>
void dot_rows_tiles(const RowsView& rows, const int32_t* index, int32_t first, int32_t n, const ActivationView& x,
                    float* out, size_t out_stride) {
    const int32_t groups = rows.cols_padded / kGroup, num_blocks = (x.num_rows + 15) / 16;
    const size_t size = static_cast<size_t>(groups);
    Scratch scratch(static_cast<uint8_t*>(kernel_scratch(tiles_scratch(groups, num_blocks))));
    FoldSpace& space = *scratch.take<FoldSpace>(1);
    const int32_t stride = (groups + 15) / 16 * 16;
    const UnpackedRows w = {scratch.take<int8_t>(size * kTileRows * kGroup),
                            scratch.take<float>(static_cast<size_t>(stride) * 16),
                            scratch.take<float>(static_cast<size_t>(stride) * 16), stride};
    int8_t* codes = scratch.take<int8_t>(num_blocks * size * kBBytes);
    float* scales = scratch.take<float>(num_blocks * size * 16);
    float* sums = scratch.take<float>(num_blocks * size * 16);
    const auto block = [&](int32_t b) {
        return PackedBlock{codes + b * size * kBBytes, scales + b * size * 16, sums + b * size * 16};
    };
    for (int32_t b = 0; b < num_blocks; ++b) pack_block(x, 16 * b, groups, block(b));
    const Tiles tiles;
    for (int32_t i = 0; i < n; i += kTileRows) {
        unpack_rows<F>(rows, index, first, i, n, w);
        for (int32_t b = 0; b < num_blocks; ++b) {
            dot_tiles<F>(w, block(b), groups, space);
            const int32_t num_rows = n - i < 16 ? n - i : 16, num_tokens = x.num_rows - 16 * b < 16 ? x.num_rows - 16 * b : 16;
            store_totals(space.total, num_rows, num_tokens, out + 16 * b * out_stride + i, out_stride);
        }
    }
}

}  // namespace
}  // namespace glass
