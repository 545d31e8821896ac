// GLASS's statistics of a step: sums over tokens of |z| / ||z|| and of its square, for every neuron.
//
// Every collected token is folded into its row's sums, one after the other: the order of additions is that of positions,
// whatever the chunks and threads. Neurons are independent of each other, so threads divide them.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"

namespace glass {

// The sums over a row's first `length` tokens go to these arrays, (num_layers, intermediate_size) each.
struct StatisticsStage {
    int32_t length;
    float* sum_abs;
    float* sum_squares;
};

// Statistics of one collected row: continued from the prior sums (null = zero), wanted at every stage; the lengths
// ascend and the last is the row's own.
struct StatisticsRow {
    const float* prior_abs;
    const float* prior_squares;
    std::vector<StatisticsStage> stages;
};

class StatisticsFold {
public:
    explicit StatisticsFold(int32_t intermediate_size) : intermediate_size_(intermediate_size) {}

    // Begin a step whose rows collect `num_tokens` tokens, row after row. `rows` must outlive it.
    void plan(const std::vector<StatisticsRow>& rows, int32_t num_tokens);

    bool empty() const { return rows_->empty(); }

    // Note the norm of one layer's z (intermediate_size,) of the i-th collected token. An all-zero z will add nothing.
    void measure(int32_t i, const float* z);

    // Fold neurons [first, last) of a layer: z (collected tokens, intermediate_size), all of them measured.
    void fold(int32_t layer, const float* z, int32_t first, int32_t last);

private:
    void fold_row(const StatisticsRow& row, const float* z, const double* scales, size_t offset, int32_t count) const;

    int32_t intermediate_size_;
    const std::vector<StatisticsRow>* rows_ = nullptr;
    Buffer<double> scales_;  // (collected tokens,)
};

}  // namespace glass
