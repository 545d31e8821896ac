#include "bind_selection.h"

#include <atomic>
#include <memory>
#include <stdexcept>
#include <utility>

#include "selection.h"

namespace nb = nanobind;

namespace glass {
namespace {

template <typename Matrix>
auto data_of(const std::optional<Matrix>& matrix) {
    return matrix.has_value() ? matrix->data() : nullptr;
}

// Everything that is chosen from, by layers; the arrays are the caller's.
struct Choice {
    size_t num_layers;
    size_t num_neurons;
    const float* values;
    const int32_t* model_ranks;
    const int64_t* weights;
    const int32_t* budgets;
    const int32_t* reference;
};

struct Chosen {
    std::unique_ptr<int32_t[]> neurons;  // of all layers, one after the other; null = a value is NaN or infinite
    size_t count = 0;
    int64_t num_agreed = 0;  // how many of them `reference` ranks among its layer's best of the same number
};

LayerEvidence evidence_of(const Choice& choice, size_t layer) {
    const size_t first = layer * choice.num_neurons;
    return {choice.values == nullptr ? nullptr : choice.values + first,
            choice.model_ranks == nullptr ? nullptr : choice.model_ranks + first, choice.weights[2 * layer],
            choice.weights[2 * layer + 1]};
}

int64_t num_agreed(const int32_t* reference, size_t num_neurons, const int32_t* neurons, int32_t count) {
    const int32_t lowest = static_cast<int32_t>(num_neurons) - count;
    int64_t agreed = 0;
    for (int32_t i = 0; i < count; ++i) agreed += reference[neurons[i]] >= lowest ? 1 : 0;
    return agreed;
}

// Where each layer's neurons start among all that are kept, and where the last layer's end.
std::vector<size_t> starts_of(const Choice& choice) {
    std::vector<size_t> starts{0};
    for (size_t layer = 0; layer < choice.num_layers; ++layer) {
        starts.push_back(starts.back() + static_cast<size_t>(choice.budgets[layer]));
    }
    return starts;
}

Chosen choose(ThreadPool& pool, const Choice& choice) {
    const std::vector<size_t> starts = starts_of(choice);
    auto neurons = std::make_unique_for_overwrite<int32_t[]>(starts.back());
    std::atomic<size_t> next{0};
    std::atomic<bool> finite{true};
    std::atomic<int64_t> agreed{0};
    pool.parallel([&](int, int) {
        size_t layer = next.fetch_add(1);
        if (layer >= choice.num_layers) return;  // a thread that is late
        NeuronSelection selection(static_cast<int32_t>(choice.num_neurons));
        for (; layer < choice.num_layers; layer = next.fetch_add(1)) {
            int32_t* out = neurons.get() + starts[layer];
            if (!selection.choose(evidence_of(choice, layer), choice.budgets[layer], out)) {
                finite = false;
            } else if (choice.reference != nullptr) {
                agreed += num_agreed(choice.reference + layer * choice.num_neurons, choice.num_neurons, out,
                                     choice.budgets[layer]);
            }
        }
    });
    return finite ? Chosen{std::move(neurons), starts.back(), agreed} : Chosen{};
}

template <typename Matrix>
void check_shape(const std::optional<Matrix>& matrix, const Choice& choice) {
    if (matrix.has_value() && (matrix->shape(0) != choice.num_layers || matrix->shape(1) != choice.num_neurons)) {
        throw std::invalid_argument("values and ranks must have the same shape");
    }
}

void check_layers(const Choice& choice) {
    for (size_t layer = 0; layer < choice.num_layers; ++layer) {
        const int32_t budget = choice.budgets[layer];
        if (budget < 0 || static_cast<size_t>(budget) > choice.num_neurons) {
            throw std::invalid_argument("a layer keeps 0 to all of its neurons");
        }
        for (size_t side = 0; side < 2; ++side) {
            const int64_t weight = choice.weights[2 * layer + side];
            if (weight < 0 || weight > max_rank_weight(choice.num_neurons)) {
                throw std::invalid_argument("a weight is out of range");
            }
        }
    }
}

}  // namespace

nb::object choose_neurons(ThreadPool& pool, const ScoreMatrix& values, const RankMatrix& model_ranks,
                          const WeightMatrix& weights, const std::vector<int32_t>& budgets,
                          const RankMatrix& reference) {
    if (!values.has_value() && !model_ranks.has_value()) throw std::invalid_argument("nothing to choose by");
    const size_t num_neurons = values.has_value() ? values->shape(1) : model_ranks->shape(1);
    const Choice choice{budgets.size(), num_neurons, data_of(values), data_of(model_ranks), weights.data(),
                        budgets.data(), data_of(reference)};
    if (weights.shape(0) != choice.num_layers || weights.shape(1) != 2) {
        throw std::invalid_argument("a layer has two weights");
    }
    if (num_neurons == 0 || num_neurons > kMaxNeurons) throw std::invalid_argument("no such number of neurons");
    check_shape(values, choice);
    check_shape(model_ranks, choice);
    check_shape(reference, choice);
    check_layers(choice);
    Chosen chosen;
    {
        nb::gil_scoped_release unlocked;
        chosen = choose(pool, choice);
    }
    if (chosen.neurons == nullptr) return nb::none();
    int32_t* data = chosen.neurons.release();
    nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<int32_t*>(memory); });
    return nb::make_tuple(nb::ndarray<nb::numpy, const int32_t, nb::ndim<1>>(data, {chosen.count}, owner),
                          chosen.num_agreed);
}

}  // namespace glass
