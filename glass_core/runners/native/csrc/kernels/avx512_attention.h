// AVX-512 vectors for attention_body.h.
#pragma once

// GCC's own headers warn about the values they leave undefined on purpose
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "common.h"

namespace glass {
namespace {

struct A {
    static constexpr int kLanes = 16, kKeyVectors = 4, kValueVectors = 4;
    using F = __m512;

    static F zero() { return _mm512_setzero_ps(); }
    static F set1(float a) { return _mm512_set1_ps(a); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load(const uint16_t* p) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    static F load(const int8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F power_of_two(F n) {
        const __m512i biased = _mm512_sub_epi32(_mm512_castps_si512(n), _mm512_set1_epi32(0x4b400000 - 127));
        return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
    }
    static F zero_below(F value, F x, F limit) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value);
    }
    static float sum(F a) { return _mm512_reduce_add_ps(a); }
    static float largest(F a) { return _mm512_reduce_max_ps(a); }
};

}  // namespace
}  // namespace glass

#include "attention_body.h"
