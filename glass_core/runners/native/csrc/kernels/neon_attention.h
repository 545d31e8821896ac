// NEON vectors for attention_body.h.
#pragma once

#include <arm_neon.h>

#include "common.h"

namespace glass {
namespace {

struct A {
    static constexpr int kLanes = 4, kKeyVectors = 4, kValueVectors = 4;
    using F = float32x4_t;

    static F zero() { return vdupq_n_f32(0.0f); }
    static F set1(float a) { return vdupq_n_f32(a); }
    static F load(const float* p) { return vld1q_f32(p); }
    static F load(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static F load(const int8_t* p) {
        int32_t four;
        __builtin_memcpy(&four, p, sizeof four);
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    }
    static void store(float* p, F a) { vst1q_f32(p, a); }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F max(F a, F b) { return vmaxq_f32(a, b); }
    static F power_of_two(F n) {
        const int32x4_t biased = vsubq_s32(vreinterpretq_s32_f32(n), vdupq_n_s32(0x4b400000 - 127));
        return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    }
    static F zero_below(F value, F x, F limit) {
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcltq_f32(x, limit)));
    }
    static float sum(F a) { return vaddvq_f32(a); }
    static float largest(F a) { return vmaxvq_f32(a); }
};

}  // namespace
}  // namespace glass

#include "attention_body.h"
