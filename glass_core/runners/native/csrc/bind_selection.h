#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "thread_pool.h"

namespace glass {

template <typename T>
using LayerMatrix = nanobind::ndarray<const T, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using ScoreMatrix = std::optional<LayerMatrix<float>>;
using RankMatrix = std::optional<LayerMatrix<int32_t>>;
using WeightMatrix = LayerMatrix<int64_t>;

// Static selection, layers shared among the threads; arguments and result as types.py says.
nanobind::object choose_neurons(ThreadPool& pool, const ScoreMatrix& values, const RankMatrix& model_ranks,
                                const WeightMatrix& weights, const std::vector<int32_t>& budgets,
                                const RankMatrix& reference);

}  // namespace glass
