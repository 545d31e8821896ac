// Times a model's FFN on this machine, both ways of walking a layer (ffn_choice.h), for the cost model.
#pragma once

#include <cstdint>
#include <vector>

#include "activations.h"
#include "ffn.h"
#include "model.h"
#include "plans.h"

namespace glass {

// Nanoseconds per neuron and layer, all threads together, for one step of so many rows.
struct FfnTiming {
    double listed;  // of a list with gaps
    double whole;   // of all neurons, masked
};

class FfnProbe {
public:
    // Uses the first layers, as many as do not fit a processor's cache; `density` in (0, 1] is the list's.
    FfnProbe(const ModelShape& shape, const ModelWeights& weights, const PlanStore& plans, const Kernels& kernels,
             FfnStep& ffn, float density);

    // Both ways in turn, at least twice and until `seconds` have passed, from every layer's fastest time. Afterwards the
    // way is chosen by cost again.
    FfnTiming time(int32_t num_rows, double seconds);

private:
    void reserve_inputs(int32_t num_rows);
    void time_path(FfnPath path, int32_t num_rows, std::vector<double>& fastest);

    const ModelWeights& weights_;
    const Kernels& kernels_;
    FfnStep& ffn_;
    int32_t hidden_size_;
    int32_t num_layers_;
    int64_t listed_neurons_ = 0;  // of the layers in use
    int64_t all_neurons_ = 0;
    Plan plans_[2];  // the same neurons twice: rows with different plans have a union to build and z to mask
    Activations inputs_;
};

}  // namespace glass
