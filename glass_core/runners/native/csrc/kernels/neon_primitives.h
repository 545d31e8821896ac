// 128-bit primitives for narrow_body.h, with the dot product extension. Included by the kernels_neon_*.cpp files only.
#pragma once

#include <arm_neon.h>

#include "common.h"

namespace glass {
namespace {

struct P {
    static constexpr int kLanes = 4;
    using F = float32x4_t;
    using I = int32x4_t;
    struct Codes {
        int8x16_t v[2];
    };
    struct Pair {
        int16x8_t a[2], b[2];
    };

    static F zero() { return vdupq_n_f32(0.0f); }
    static F set1(float a) { return vdupq_n_f32(a); }
    static F load(const float* p) { return vld1q_f32(p); }
    static void store(float* p, F a) { vst1q_f32(p, a); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F to_float(I a) { return vcvtq_f32_s32(a); }
    static float half(uint16_t a) { return half_to_float(a); }
    static F load_half(const void* p) {
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(p))));
    }
    static F load_int8(const uint8_t* p) {
        uint32_t four;
        __builtin_memcpy(&four, p, sizeof four);
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    }
    static F load_bf16(const uint8_t* p) {
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
    }
    static float sum(F a) { return vaddvq_f32(a); }
    static I izero() { return vdupq_n_s32(0); }
    static I iset1(int32_t a) { return vdupq_n_s32(a); }
    static I iadd(I a, I b) { return vaddq_s32(a, b); }

    static Codes load_x(const int8_t* p) { return {{vld1q_s8(p), vld1q_s8(p + 16)}}; }
    static int8x16_t centered(const uint8_t* p) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128))); }
    static Codes load_q8(const uint8_t* p) { return {{centered(p), centered(p + 16)}}; }
    static void unpack_q4(const uint8_t* p, Codes& low, Codes& high) {
        for (int i = 0; i < 2; ++i) {
            const uint8x16_t both = vld1q_u8(p + 16 * i);
            low.v[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            high.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        }
    }
    static I dot_q8(const Codes& w, const Codes& x) {
        return vdotq_s32(vdotq_s32(izero(), w.v[0], x.v[0]), w.v[1], x.v[1]);
    }
    // 4-bit codes are small enough to be signed
    static I dot_q4(const Codes& w, const Codes& x) { return dot_q8(w, x); }

    static void widen(uint8x16_t bytes, int shift, int16x8_t (&out)[2]) {
        if (shift >= 0) bytes = vandq_u8(vshlq_u8(bytes, vdupq_n_s8(static_cast<int8_t>(-shift))), vdupq_n_u8(15));
        out[0] = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
        out[1] = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
    }
    static Pair pair(const uint8_t* a, const uint8_t* b, int shift) {
        Pair result;
        widen(vld1q_u8(a), shift, result.a);
        widen(vld1q_u8(b), shift, result.b);
        return result;
    }
    static void add_pair(I (&sums)[4], const Pair& codes, int16_t a, int16_t b) {
        for (int i = 0; i < 2; ++i) {
            sums[2 * i] = vmlal_n_s16(sums[2 * i], vget_low_s16(codes.a[i]), a);
            sums[2 * i] = vmlal_n_s16(sums[2 * i], vget_low_s16(codes.b[i]), b);
            sums[2 * i + 1] = vmlal_n_s16(sums[2 * i + 1], vget_high_s16(codes.a[i]), a);
            sums[2 * i + 1] = vmlal_n_s16(sums[2 * i + 1], vget_high_s16(codes.b[i]), b);
        }
    }
};

}  // namespace
}  // namespace glass
