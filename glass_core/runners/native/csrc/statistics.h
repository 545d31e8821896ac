// GLASS's statistics of a step: sums over tokens of |z| / ||z|| and of its square, for every neuron, and of |act(gate)|
// for rows that want those too.
//
// Every collected token is folded into its row's sums, one after the other: the order of additions is that of positions,
// whatever the chunks and threads. Neurons are independent of each other, so threads divide them.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"

namespace glass {

// The sums over a row's first `length` tokens go to these arrays, (num_layers, intermediate_size) each; `sum_gates` null
// where gates are not wanted.
struct StatisticsStage {
    int32_t length;
    float* sum_abs;
    float* sum_squares;
    float* sum_gates;
};

// Statistics of one collected row: continued from the prior sums (null = zero), wanted at every stage; the lengths
// ascend and the last is the row's own. Gates of tokens before `first_gate` are left out.
struct StatisticsRow {
    const float* prior_abs;
    const float* prior_squares;
    const float* prior_gates;
    int32_t first_gate;
    std::vector<StatisticsStage> stages;

    bool gates() const { return stages.back().sum_gates != nullptr; }

    // What is wrong with it for a row of `num_tokens` tokens; null for nothing.
    const char* problem(int32_t num_tokens) const;
};

class StatisticsFold {
public:
    explicit StatisticsFold(int32_t intermediate_size) : intermediate_size_(intermediate_size) {}

    // Begin a step whose rows collect `num_tokens` tokens, row after row. `rows` must outlive it.
    void plan(const std::vector<StatisticsRow>& rows, int32_t num_tokens);

    bool empty() const { return rows_->empty(); }

    // Note the norm of one layer's z (intermediate_size,) of the i-th collected token. An all-zero z will add nothing.
    void measure(int32_t i, const float* z);

    // Fold neurons [first, last) of a layer: z (collected tokens, intermediate_size), all of them measured, and act(gate)
    // (tokens of the rows that want gates, intermediate_size).
    void fold(int32_t layer, const float* z, const float* gates, int32_t first, int32_t last);

private:
    void fold_row(const StatisticsRow& row, const float* z, const double* scales, size_t offset, int32_t count) const;
    void fold_gates(const StatisticsRow& row, const float* gates, size_t offset, int32_t count) const;

    int32_t intermediate_size_;
    const std::vector<StatisticsRow>* rows_ = nullptr;
    Buffer<double> scales_;  // (collected tokens,)
};

}  // namespace glass
