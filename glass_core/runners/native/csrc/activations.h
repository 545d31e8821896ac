// Inputs of a product for all tokens of a step: float32 values, and their int8 form where the weights are quantized.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "elementwise.h"
#include "kernels/kernels.h"
#include "rows.h"

namespace glass {

class Activations {
public:
    explicit Activations(int32_t cols) : cols_(cols), cols_padded_(padded(cols)) {}

    void reserve(int32_t num_tokens) {
        const auto tokens = static_cast<size_t>(num_tokens);
        values_.reserve(tokens * stride());
        codes_.reserve(tokens * stride());
        scales_.reserve(tokens * groups());
        sums_.reserve(tokens * groups());
    }

    size_t stride() const { return static_cast<size_t>(cols_padded_); }

    // (cols_padded,); what lies past the columns must stay 0
    float* values(int32_t token) { return values_.data() + static_cast<size_t>(token) * stride(); }

    // Call after the token's values are set, for weights that are not bfloat16.
    void quantize(const Kernels& kernels, int32_t token) {
        const auto t = static_cast<size_t>(token);
        kernels.quantize(values(token), cols_, cols_padded_, codes_.data() + t * stride(), scales_.data() + t * groups(),
                         sums_.data() + t * groups());
    }

    // Row 2 * token, quantized, and what that lost as row 2 * token + 1: their products add up to one with 15-bit inputs.
    void quantize_pair(const Kernels& kernels, int32_t token) {
        const int32_t coarse = 2 * token, rest = coarse + 1;
        quantize(kernels, coarse);
        const int8_t* codes = codes_.data() + static_cast<size_t>(coarse) * stride();
        const float* scales = scales_.data() + static_cast<size_t>(coarse) * groups();
        subtract_codes(values(coarse), codes, scales, cols_, values(rest));
        quantize(kernels, rest);
    }

    ActivationView view(int32_t first, int32_t count) {
        const auto t = static_cast<size_t>(first);
        return {values(first),
                stride(),
                codes_.data() + t * stride(),
                stride(),
                scales_.data() + t * groups(),
                sums_.data() + t * groups(),
                groups(),
                count};
    }

private:
    size_t groups() const { return static_cast<size_t>(cols_padded_ / kGroup); }

    int32_t cols_;
    int32_t cols_padded_;
    Buffer<float> values_;
    Buffer<int8_t> codes_;
    Buffer<float> scales_;
    Buffer<float> sums_;
};

}  // namespace glass
