#include "rotary.h"

#include <cmath>

namespace glass {

void RotaryTables::reserve(int32_t num_tokens) {
    const size_t size = static_cast<size_t>(num_tokens) * static_cast<size_t>(num_ropes_) * static_cast<size_t>(half_);
    cosines_.reserve(size);
    sines_.reserve(size);
}

void RotaryTables::place(const Frequencies& frequencies, int32_t token, int32_t position) {
    const ptrdiff_t size = static_cast<ptrdiff_t>(num_ropes_) * half_;
    const float* row = frequencies.values + (frequencies.num_rows == 1 ? 0 : token * size);
    const auto at = static_cast<float>(position);
    float *cosines = cosines_.data() + token * size, *sines = sines_.data() + token * size;
    for (ptrdiff_t i = 0; i < size; ++i) {
        cosines[i] = std::cos(at * row[i]);
        sines[i] = std::sin(at * row[i]);
    }
}

}  // namespace glass
