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

const char* StatisticsRow::problem(int32_t num_tokens) const {
    if (stages.empty()) return "has no place for its statistics";
    int32_t previous = 0;
    for (const StatisticsStage& stage : stages) {
        if (stage.length <= previous) return "the lengths of its statistics do not ascend";
        if ((stage.sum_gates != nullptr) != gates()) return "gates are wanted in some of its statistics only";
        previous = stage.length;
    }
    return previous == num_tokens ? nullptr : "its last statistics are not those of all its tokens";
}

void StatisticsFold::plan(const std::vector<StatisticsRow>& rows, int32_t num_tokens) {
    rows_ = &rows;
    scales_.reserve(static_cast<size_t>(num_tokens));
}

void StatisticsFold::measure(int32_t i, const float* z) {
    const double squares = sum_squares(z, intermediate_size_);
    scales_.data()[i] = squares == 0.0 ? 0.0 : 1.0 / std::sqrt(squares);
}

void StatisticsFold::fold(int32_t layer, const float* z, const float* gates, int32_t first, int32_t last) {
    const auto size = static_cast<size_t>(intermediate_size_);
    const size_t offset = static_cast<size_t>(layer) * size + static_cast<size_t>(first);
    size_t token = 0, gated = 0;
    for (const StatisticsRow& row : *rows_) {
        const auto num_tokens = static_cast<size_t>(row.stages.back().length);
        fold_row(row, z + token * size + first, scales_.data() + token, offset, last - first);
        token += num_tokens;
        if (!row.gates()) continue;
        fold_gates(row, gates + gated * size + first, offset, last - first);
        gated += num_tokens;
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

// The same of act(gate).
void StatisticsFold::fold_gates(const StatisticsRow& row, const float* gates, size_t offset, int32_t count) const {
    const float* so_far = row.prior_gates;
    int32_t token = row.first_gate;
    for (const StatisticsStage& stage : row.stages) {
        start_from(so_far, offset, static_cast<size_t>(count), stage.sum_gates + offset);
        for (; token < stage.length; ++token) {
            add_magnitudes(gates + static_cast<size_t>(token) * static_cast<size_t>(intermediate_size_), count,
                           stage.sum_gates + offset);
        }
        so_far = stage.sum_gates;
    }
}

}  // namespace glass
