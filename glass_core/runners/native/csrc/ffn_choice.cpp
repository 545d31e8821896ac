#include "ffn_choice.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace glass {

void FfnChoice::set(std::vector<BreakEven> points) {
    int32_t previous = 0;
    for (const BreakEven& point : points) {
        if (point.num_rows <= previous || !(point.density > 0.0f && point.density <= 1.0f)) {
            throw std::invalid_argument("break-even points: expected ascending numbers of rows and densities in (0, 1], got " +
                                        std::to_string(point.num_rows) + " rows, " + std::to_string(point.density));
        }
        previous = point.num_rows;
    }
    points_ = std::move(points);
}

float FfnChoice::break_even(int32_t num_rows) const {
    if (points_.empty()) return 1.0f;
    if (num_rows <= points_.front().num_rows) return points_.front().density;
    for (size_t i = 1; i < points_.size(); ++i) {
        const BreakEven &low = points_[i - 1], &high = points_[i];
        if (num_rows > high.num_rows) continue;
        const float part = static_cast<float>(num_rows - low.num_rows) / static_cast<float>(high.num_rows - low.num_rows);
        return low.density + part * (high.density - low.density);
    }
    return points_.back().density;
}

bool FfnChoice::all_inputs(int32_t kept, int32_t hidden_size) const {
    if (forced_ != FfnPath::cheapest) return forced_ == FfnPath::all_neurons;
    return static_cast<float>(kept) > kInputsBreakEven * static_cast<float>(hidden_size);
}

bool FfnChoice::all_neurons(int32_t num_rows, int32_t kept, int32_t intermediate_size) const {
    if (forced_ != FfnPath::cheapest) return forced_ == FfnPath::all_neurons;
    return kept == intermediate_size ||
           static_cast<float>(kept) > break_even(num_rows) * static_cast<float>(intermediate_size);
}

}  // namespace glass
