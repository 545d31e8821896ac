// Cosines and sines of a step's positions, for every rotary embedding of the model (arXiv 2104.09864).
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"

namespace glass {

// RoPE frequencies: one row for all tokens, or one per token.
struct Frequencies {
    const float* values;  // (num_rows, num_ropes, head_dim / 2)
    int32_t num_rows;
};

// The angles of one token's rotation, (head_dim / 2,).
struct Rotation {
    const float* cosines;
    const float* sines;
};

class RotaryTables {
public:
    RotaryTables(int32_t num_ropes, int32_t head_dim) : num_ropes_(num_ropes), half_(head_dim / 2) {}

    void reserve(int32_t num_tokens);

    // After `reserve`: the angles of the step's `token` at `position`.
    void place(const Frequencies& frequencies, int32_t token, int32_t position);

    // Of the model's rotary embedding with this index.
    Rotation at(int32_t token, int32_t rope) const {
        const ptrdiff_t row = (static_cast<ptrdiff_t>(token) * num_ropes_ + rope) * half_;
        return {cosines_.data() + row, sines_.data() + row};
    }

private:
    int32_t num_ropes_;
    int32_t half_;
    Buffer<float> cosines_;  // (tokens, num_ropes, head_dim / 2)
    Buffer<float> sines_;
};

}  // namespace glass
