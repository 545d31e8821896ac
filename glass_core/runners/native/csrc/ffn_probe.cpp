#include "ffn_probe.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>

namespace glass {
namespace {

using Clock = std::chrono::steady_clock;

// What the probed layers weigh at least: a step's weights do not fit the caches, so neither may the probe's.
constexpr size_t kProbeBytes = size_t{96} << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A fixed pseudo-random sequence (the constants are those of Knuth's MMIX).
class Sequence {
public:
    float next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<float>(state_ >> 40) / static_cast<float>(1 << 24);  // in [0, 1)
    }

private:
    uint64_t state_ = 1;
};

int32_t num_probed_layers(const ModelShape& shape, const ModelWeights& weights) {
    const size_t layer_bytes = weights.layers.front().ffn.neuron_bytes() * static_cast<size_t>(shape.intermediate_size);
    return std::min(shape.num_layers, static_cast<int32_t>(kProbeBytes / layer_bytes + 1));
}

// Neurons drawn one by one, at least one: the gaps are those of a plan.
std::vector<int32_t> draw(int32_t intermediate_size, float density, Sequence& sequence) {
    std::vector<int32_t> kept{0};
    for (int32_t neuron = 1; neuron < intermediate_size; ++neuron) {
        if (sequence.next() < density) kept.push_back(neuron);
    }
    return kept;
}

}  // namespace

FfnProbe::FfnProbe(const ModelShape& shape, const ModelWeights& weights, const PlanStore& plans, const Kernels& kernels,
                   FfnStep& ffn, float density)
    : weights_(weights),
      kernels_(kernels),
      ffn_(ffn),
      hidden_size_(shape.hidden_size),
      num_layers_(num_probed_layers(shape, weights)),
      inputs_(shape.hidden_size) {
    Sequence sequence;
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
        const std::vector<int32_t> kept = draw(shape.intermediate_size, density, sequence);
        plans_[0].emplace_back(plans.layout(), shape.intermediate_size, kept.data(), kept.size());
        if (layer >= num_layers_) continue;
        listed_neurons_ += static_cast<int64_t>(kept.size());
        all_neurons_ += shape.intermediate_size;
    }
    plans_[1] = plans_[0];
}

FfnTiming FfnProbe::time(int32_t num_rows, double seconds) {
    reserve_inputs(num_rows);
    std::vector<double> listed(static_cast<size_t>(num_layers_), std::numeric_limits<double>::infinity()), whole = listed;
    const auto start = Clock::now();
    for (int32_t repeat = 0; repeat < 2 || seconds_since(start) < seconds; ++repeat) {
        time_path(FfnPath::union_list, num_rows, listed);
        time_path(FfnPath::all_neurons, num_rows, whole);
    }
    ffn_.choice().force(FfnPath::cheapest);
    const auto total = [](const std::vector<double>& seconds) {
        return 1e9 * std::accumulate(seconds.begin(), seconds.end(), 0.0);
    };
    return {total(listed) / static_cast<double>(listed_neurons_), total(whole) / static_cast<double>(all_neurons_)};
}

void FfnProbe::reserve_inputs(int32_t num_rows) {
    inputs_.reserve(num_rows);
    Sequence sequence;
    for (int32_t row = 0; row < num_rows; ++row) {
        float* values = inputs_.values(row);
        for (int32_t i = 0; i < hidden_size_; ++i) values[i] = sequence.next() - 0.5f;
        if (weights_.layers.front().ffn.gate_up.format != Format::bf16) inputs_.quantize(kernels_, row);
    }
}

void FfnProbe::time_path(FfnPath path, int32_t num_rows, std::vector<double>& fastest) {
    std::vector<const Plan*> row_plans;
    for (int32_t row = 0; row < num_rows; ++row) row_plans.push_back(&plans_[row % 2]);
    ffn_.choice().force(path);
    ffn_.plan(row_plans, std::vector<int32_t>(static_cast<size_t>(num_rows), -1), {});
    for (int32_t layer = 0; layer < num_layers_; ++layer) {
        const auto start = Clock::now();
        ffn_.run(weights_.layers[static_cast<size_t>(layer)].ffn, layer, inputs_);
        double& best = fastest[static_cast<size_t>(layer)];
        best = std::min(best, seconds_since(start));
    }
}

}  // namespace glass
