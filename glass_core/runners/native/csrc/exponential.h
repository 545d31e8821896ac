// A branch-free exp: 2^n * p(r) with x = n ln 2 + r, |r| <= ln 2 / 2, p the Taylor polynomial of degree 7 (its
// remainder is below half an ulp there). Loops over it vectorize, which calls of libm do not.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace glass {

inline float fast_exp(float x) {
    constexpr float kLog2e = 1.44269504088896341f;
    constexpr float kLn2High = 0.693145751953125f;  // 12 trailing zero bits: n * kLn2High is exact
    constexpr float kLn2Low = 1.42860682030941723212e-6f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    // 2^-126 … 2^127: beyond that, zero and the largest finite power are as good
    const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float shifted = clamped * kLog2e + kRound;
    const float n = shifted - kRound;
    const float r = (clamped - n * kLn2High) - n * kLn2Low;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t exponent = (std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound) + 127) << 23;
    const float result = p * std::bit_cast<float>(exponent);
    return x < -87.0f ? 0.0f : result;  // NaN fails every comparison and comes out as NaN
}

}  // namespace glass
