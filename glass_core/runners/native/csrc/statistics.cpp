#include "statistics.h"

#include <cmath>
#include <cstring>

#include "elementwise.h"

namespace glass {
namespace {

// to[0 … count) = from[offset …], or 0 without a source
void start_from(const float* from, size_t offset, size_t count, float* to) {
    if (from == nullptr) {
        std::memset(to, 0, sizeof(float) * count);
    } else {
        std::memcpy(to, from + offset, sizeof(float) * count);
    }
}

}  // namespace

void StatisticsFold::plan(const std::vector<StatisticsRow>& rows, int32_t num_tokens) {
    rows_ = &rows;
    scales_.reserve(static_cast<size_t>(num_tokens));
}

void StatisticsFold::measure(int32_t i, const float* z) {
    const double squares = sum_squares(z, intermediate_size_);
    scales_.data()[i] = squares == 0.0 ? 0.0 : 1.0 / std::sqrt(squares);
}

void StatisticsFold::fold(int32_t layer, const float* z, int32_t first, int32_t last) {
    const auto size = static_cast<size_t>(intermediate_size_);
    const size_t offset = static_cast<size_t>(layer) * size + static_cast<size_t>(first);
    const float* from = z + first;
    const double* scales = scales_.data();
    for (const StatisticsRow& row : *rows_) {
        fold_row(row, from, scales, offset, last - first);
        const int32_t num_tokens = row.stages.back().length;
        from += static_cast<size_t>(num_tokens) * size;
        scales += num_tokens;
    }
}

// One row: `count` neurons, whose sums begin at `offset`.
void StatisticsFold::fold_row(const StatisticsRow& row, const float* z, const double* scales, size_t offset,
                              int32_t count) const {
    const float *abs_so_far = row.prior_abs, *squares_so_far = row.prior_squares;
    int32_t token = 0;
    for (const StatisticsStage& stage : row.stages) {
        start_from(abs_so_far, offset, static_cast<size_t>(count), stage.sum_abs + offset);
        start_from(squares_so_far, offset, static_cast<size_t>(count), stage.sum_squares + offset);
        for (; token < stage.length; ++token) {
            add_normalized(z + static_cast<size_t>(token) * static_cast<size_t>(intermediate_size_), scales[token], count,
                           stage.sum_abs + offset, stage.sum_squares + offset);
        }
        abs_so_far = stage.sum_abs;
        squares_so_far = stage.sum_squares;
    }
}

}  // namespace glass
