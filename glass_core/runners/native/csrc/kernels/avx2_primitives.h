// 256-bit primitives for narrow_body.h. With AVX-VNNI the byte and word dot products are one instruction; without, two
// or three, arranged so that 16-bit sums cannot saturate: q4 codes are at most 15, and a signed q8 code is used by its
// magnitude, at most 128, against the activation with its sign.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace glass {
namespace {

struct P {
    static constexpr int kLanes = 8;
    using F = __m256;
    using I = __m256i;
    using Codes = __m256i;
    struct Pair {
        __m256i v[2];
    };

    static F zero() { return _mm256_setzero_ps(); }
    static F set1(float a) { return _mm256_set1_ps(a); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
    static float half(uint16_t a) { return _cvtsh_ss(a); }
    static __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static F load_half(const void* p) { return _mm256_cvtph_ps(load16(p)); }
    static F load_int8(const uint8_t* p) {
        return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static F load_bf16(const uint8_t* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
    }
    static float sum(F a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static I izero() { return _mm256_setzero_si256(); }
    static I iset1(int32_t a) { return _mm256_set1_epi32(a); }
    static I iadd(I a, I b) { return _mm256_add_epi32(a, b); }

    static Codes load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static Codes load_x(const int8_t* p) { return load32(p); }
    static Codes load_q8(const uint8_t* p) { return _mm256_xor_si256(load32(p), _mm256_set1_epi8(-128)); }
    static void unpack_q4(const uint8_t* p, Codes& low, Codes& high) {
        const Codes both = load32(p), mask = _mm256_set1_epi8(15);
        low = _mm256_and_si256(both, mask);
        high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    }

#if defined(__AVXVNNI__)
    static I dot_q4(Codes w, Codes x) { return _mm256_dpbusd_avx_epi32(izero(), w, x); }
    static I add_products(I sum, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
#else
    static I dot_q4(Codes w, Codes x) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
    }
    static I add_products(I sum, __m256i a, __m256i b) { return iadd(sum, _mm256_madd_epi16(a, b)); }
#endif
    static I dot_q8(Codes w, Codes x) { return dot_q4(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }

    static Pair pair(const uint8_t* a, const uint8_t* b, int shift) {
        __m128i first = load16(a), second = load16(b);
        if (shift >= 0) {
            const __m128i mask = _mm_set1_epi8(15), count = _mm_cvtsi32_si128(shift);
            first = _mm_and_si128(_mm_srl_epi16(first, count), mask);
            second = _mm_and_si128(_mm_srl_epi16(second, count), mask);
        }
        // dword i = (first[i], second[i]) as words
        return {{_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second)),
                 _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second))}};
    }
    static void add_pair(I (&sums)[2], const Pair& codes, int16_t a, int16_t b) {
        const uint32_t both = static_cast<uint16_t>(a) | static_cast<uint32_t>(static_cast<uint16_t>(b)) << 16;
        const __m256i z = iset1(static_cast<int32_t>(both));
        sums[0] = add_products(sums[0], codes.v[0], z);
        sums[1] = add_products(sums[1], codes.v[1], z);
    }
};

}  // namespace
}  // namespace glass
