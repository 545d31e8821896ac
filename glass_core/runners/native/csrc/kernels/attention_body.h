// Attention over one span, written once over the vectors of an instruction set. A header that defines `struct A`
// (avx512_attention.h, avx2_attention.h, neon_attention.h) includes this:
//
//   kLanes (divides 16); kKeyVectors, kValueVectors: vectors of keys and of value dimensions in registers at once
//   F (floats); F zero(), set1(float), load(const float*), load(const uint16_t* bf16), load(const int8_t*), add(F, F),
//     sub(F, F), mul(F, F), fma(a, b, c) = a*b + c, max(F, F) (the second when one is NaN); store(float*, F)
//   F power_of_two(F n): of 1.5 * 2^23 + n; F zero_below(F value, F x, F limit): value, but 0 where x < limit
//   float sum(F), largest(F)
//
// Every query goes through the same operations on the same lanes whatever shares its registers; keys that it does not
// see have weight 0, which leaves sums as they are. So its result depends neither on the batch nor on chunks.
#pragma once

#include "common.h"

namespace glass {
namespace {

inline constexpr int kMaxQueries = 6;

// exp of values <= 0, see exponential.h; below -87, -inf included, 0.
inline A::F exp_of(A::F x) {
    using F = A::F;
    const F limit = A::set1(-87.0f), round = A::set1(12582912.0f);
    const F clamped = A::max(limit, x);
    const F shifted = A::fma(clamped, A::set1(1.44269504088896341f), round);
    const F n = A::sub(shifted, round);
    F r = A::fma(n, A::set1(-0.693145751953125f), clamped);
    r = A::fma(n, A::set1(-1.42860682030941723212e-6f), r);
    F p = A::fma(r, A::set1(1.0f / 5040.0f), A::set1(1.0f / 720.0f));
    p = A::fma(p, r, A::set1(1.0f / 120.0f));
    p = A::fma(p, r, A::set1(1.0f / 24.0f));
    p = A::fma(p, r, A::set1(1.0f / 6.0f));
    p = A::fma(p, r, A::set1(0.5f));
    p = A::fma(p, r, A::set1(1.0f));
    p = A::fma(p, r, A::set1(1.0f));
    return A::zero_below(A::mul(p, A::power_of_two(shifted)), x, limit);
}

// Dot products of Q queries with V vectors of keys over `dims` dimensions: lane l of vector v is key v * kLanes + l,
// spread over groups of 16.
template <int Q, int V, typename T>
inline __attribute__((always_inline)) void dot_keys(const float* q, int32_t q_stride, const T* const* keys,
                                                    int32_t key_stride, int32_t dims, A::F (&sums)[Q][V]) {
    constexpr int kPerGroup = kKeyLanes / A::kLanes;
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[i][v] = A::zero();
    }
    for (int32_t d = 0; d < dims; ++d) {
        A::F key[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) key[v] = A::load(keys[v / kPerGroup] + d * key_stride + v % kPerGroup * A::kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < Q; ++i) {
            const A::F value = A::set1(q[i * q_stride + d]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[i][v] = A::fma(key[v], value, sums[i][v]);
        }
    }
}

// Scores of Q queries with the keys of groups [group, group + V * kLanes / 16).
template <int Q, int V>
inline void score_bf16(const KeySpan& span, int32_t group, const float* q, float* scores) {
    constexpr int kGroups = V * A::kLanes / kKeyLanes;
    const uint16_t* keys[kGroups];
    for (int g = 0; g < kGroups; ++g) keys[g] = static_cast<const uint16_t*>(span.groups[group + g].keys);
    A::F sums[Q][V];
    dot_keys<Q, V>(q, span.padded_dim, keys, span.key_stride, span.head_dim, sums);
    for (int i = 0; i < Q; ++i) {
        for (int v = 0; v < V; ++v) A::store(scores + i * kSpanKeys + group * kKeyLanes + v * A::kLanes, sums[i][v]);
    }
}

template <int Q, int V>
inline void score_int8(const KeySpan& span, int32_t group, const float* q, float* scores) {
    constexpr int kGroups = V * A::kLanes / kKeyLanes, kPerGroup = kKeyLanes / A::kLanes;
    const int8_t* keys[kGroups];
    for (int32_t first = 0; first < span.head_dim; first += kKvScaleDims) {
        const int32_t left = span.head_dim - first, at = first / kKvScaleDims * span.scale_stride;
        for (int g = 0; g < kGroups; ++g) {
            keys[g] = static_cast<const int8_t*>(span.groups[group + g].keys) + first * span.key_stride;
        }
        A::F sums[Q][V];
        dot_keys<Q, V>(q + first, span.padded_dim, keys, span.key_stride, left < kKvScaleDims ? left : kKvScaleDims, sums);
        for (int v = 0; v < V; ++v) {
            const float* scales = span.groups[group + v / kPerGroup].key_scales + at + v % kPerGroup * A::kLanes;
            const A::F scale = A::load(scales);
            for (int i = 0; i < Q; ++i) {
                float* score = scores + i * kSpanKeys + group * kKeyLanes + v * A::kLanes;
                A::store(score, first == 0 ? A::mul(sums[i][v], scale) : A::fma(sums[i][v], scale, A::load(score)));
            }
        }
    }
}

template <int Q, int V>
inline void score_groups(const KeySpan& span, int32_t group, const float* q, float* scores) {
    if (span.format == KvFormat::bf16) {
        score_bf16<Q, V>(span, group, q, scores);
    } else {
        score_int8<Q, V>(span, group, q, scores);
    }
}

// Scores of one query into weights, in place; keys outside its range get exactly 0.
inline SoftmaxState weigh(float* scores, int32_t num_keys, KeyRange range) {
    const int32_t count = (num_keys + kKeyLanes - 1) / kKeyLanes * kKeyLanes;
    const int32_t end = range.last < 0 ? 0 : (range.last < num_keys ? range.last + 1 : num_keys);
    for (int32_t j = 0; j < range.first && j < count; ++j) scores[j] = -__builtin_inff();
    for (int32_t j = end; j < count; ++j) scores[j] = -__builtin_inff();
    A::F top = A::load(scores);
    for (int32_t j = A::kLanes; j < count; j += A::kLanes) top = A::max(A::load(scores + j), top);
    const float largest = A::largest(top);
    if (largest == -__builtin_inff()) {
        for (int32_t j = 0; j < count; ++j) scores[j] = 0.0f;
        return {largest, 0.0f};
    }
    const A::F shift = A::set1(largest);
    A::F sums = A::zero();
    for (int32_t j = 0; j < count; j += A::kLanes) {
        const A::F weight = exp_of(A::sub(A::load(scores + j), shift));
        A::store(scores + j, weight);
        sums = A::add(sums, weight);
    }
    return {largest, A::sum(sums)};
}

// out[i][d …] = sum over keys of weight * value, for V vectors of dimensions from d on.
template <int Q, int V, typename T>
inline __attribute__((always_inline)) void mix(const KeySpan& span, const float* weights, int32_t d, float* out) {
    A::F sums[Q][V];
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[i][v] = A::zero();
    }
    for (int32_t j = 0; j < span.num_keys; ++j) {
        const T* row = static_cast<const T*>(span.groups[j / kKeyLanes].values) + j % kKeyLanes * span.value_stride + d;
        A::F value[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) value[v] = A::load(row + v * A::kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < Q; ++i) {
            const A::F weight = A::set1(weights[i * kSpanKeys + j]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[i][v] = A::fma(value[v], weight, sums[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) A::store(out + i * span.padded_dim + d + v * A::kLanes, sums[i][v]);
    }
}

// As many vectors at once as fit before `end`; both are multiples of 16.
template <int Q, int V, typename T>
inline void mix_dims(const KeySpan& span, const float* weights, int32_t d, int32_t end, float* out) {
    constexpr int kOne = kKeyLanes / A::kLanes;
    for (; d + V * A::kLanes <= end; d += V * A::kLanes) mix<Q, V, T>(span, weights, d, out);
    for (; d < end; d += kKeyLanes) mix<Q, kOne, T>(span, weights, d, out);
}

template <int Q>
inline void mix_int8(const KeySpan& span, const float* weights, float* out) {
    constexpr int kFit = kKvScaleDims / A::kLanes, kVectors = A::kValueVectors < kFit ? A::kValueVectors : kFit;
    alignas(64) float scaled[Q * kSpanKeys];
    for (int32_t first = 0; first < span.padded_dim; first += kKvScaleDims) {
        const int32_t at = first / kKvScaleDims * span.scale_stride;
        for (int32_t j = 0; j < span.num_keys; j += A::kLanes) {
            const A::F scale = A::load(span.groups[j / kKeyLanes].value_scales + at + j % kKeyLanes);
            for (int i = 0; i < Q; ++i) {
                A::store(scaled + i * kSpanKeys + j, A::mul(A::load(weights + i * kSpanKeys + j), scale));
            }
        }
        const int32_t end = first + kKvScaleDims;
        mix_dims<Q, kVectors, int8_t>(span, scaled, first, end < span.padded_dim ? end : span.padded_dim, out);
    }
}

template <int Q>
void attend_queries(const KeySpan& span, const float* q, const KeyRange* ranges, float* out, SoftmaxState* states) {
    constexpr int kWide = A::kKeyVectors, kNarrow = kKeyLanes / A::kLanes, kStep = kWide * A::kLanes / kKeyLanes;
    alignas(64) float weights[Q * kSpanKeys];
    const int32_t num_groups = (span.num_keys + kKeyLanes - 1) / kKeyLanes;
    int32_t group = 0;
    for (; group + kStep <= num_groups; group += kStep) score_groups<Q, kWide>(span, group, q, weights);
    for (; group < num_groups; ++group) score_groups<Q, kNarrow>(span, group, q, weights);
    for (int i = 0; i < Q; ++i) states[i] = weigh(weights + i * kSpanKeys, span.num_keys, ranges[i]);
    if (span.format == KvFormat::bf16) {
        mix_dims<Q, A::kValueVectors, uint16_t>(span, weights, 0, span.padded_dim, out);
    } else {
        mix_int8<Q>(span, weights, out);
    }
}

void attend_span(const KeySpan& span, const float* q, const KeyRange* ranges, int32_t num_queries, float* out,
                 SoftmaxState* states) {
    constexpr decltype(&attend_queries<1>) kVariants[] = {nullptr,
                                                          attend_queries<1>,
                                                          attend_queries<2>,
                                                          attend_queries<3>,
                                                          attend_queries<4>,
                                                          attend_queries<5>,
                                                          attend_queries<kMaxQueries>};
    for (int32_t i = 0; i < num_queries;) {
        const int32_t left = num_queries - i, count = left < kMaxQueries ? left : kMaxQueries;
        kVariants[count](span, q + i * span.padded_dim, ranges + i, out + i * span.padded_dim, states + i);
        i += count;
    }
}

}  // namespace
}  // namespace glass
