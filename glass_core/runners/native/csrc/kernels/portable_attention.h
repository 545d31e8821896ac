// Attention over one span in plain C++: the reference of attention_body.h.
#pragma once

#include "common.h"

namespace glass {
namespace {

struct PortableSpan {
    const KeySpan& span;

    float key(int32_t j, int32_t d) const {
        const KeyGroup& group = span.groups[j / kKeyLanes];
        return value_at(group.keys, d * span.key_stride + j % kKeyLanes) * scale(group.key_scales, j, d);
    }
    float value(int32_t j, int32_t d) const {
        const KeyGroup& group = span.groups[j / kKeyLanes];
        return value_at(group.values, j % kKeyLanes * span.value_stride + d) * scale(group.value_scales, j, d);
    }

private:
    float value_at(const void* from, int32_t at) const {
        if (span.format == KvFormat::int8) return static_cast<const int8_t*>(from)[at];
        return bf16_to_float(static_cast<const uint16_t*>(from)[at]);
    }
    float scale(const float* scales, int32_t j, int32_t d) const {
        if (span.format == KvFormat::bf16) return 1.0f;
        return scales[d / kKvScaleDims * span.scale_stride + j % kKeyLanes];
    }
};

inline SoftmaxState attend_one(const PortableSpan& keys, const float* q, KeyRange range, float* out) {
    const KeySpan& span = keys.span;
    for (int32_t d = 0; d < span.padded_dim; ++d) out[d] = 0.0f;
    const int32_t first = range.first < 0 ? 0 : range.first;
    const int32_t last = range.last < span.num_keys ? range.last : span.num_keys - 1;
    float scores[kSpanKeys];
    SoftmaxState state = {-__builtin_inff(), 0.0f};
    for (int32_t j = first; j <= last; ++j) {
        scores[j] = 0.0f;
        for (int32_t d = 0; d < span.head_dim; ++d) scores[j] += q[d] * keys.key(j, d);
        state.largest = scores[j] > state.largest ? scores[j] : state.largest;
    }
    for (int32_t j = first; j <= last; ++j) {
        const float weight = __builtin_expf(scores[j] - state.largest);
        state.sum += weight;
        for (int32_t d = 0; d < span.head_dim; ++d) out[d] += weight * keys.value(j, d);
    }
    return state;
}

void attend_span(const KeySpan& span, const float* q, const KeyRange* ranges, int32_t num_queries, float* out,
                 SoftmaxState* states) {
    const PortableSpan keys = {span};
    for (int32_t i = 0; i < num_queries; ++i) {
        states[i] = attend_one(keys, q + i * span.padded_dim, ranges[i], out + i * span.padded_dim);
    }
}

}  // namespace
}  // namespace glass
