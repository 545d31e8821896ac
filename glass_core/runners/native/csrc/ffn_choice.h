// How a step walks the neurons of a layer: the list of those that some row keeps, or all of them in order.
//
// Both give every row the same bits, because a neuron that a row does not keep has z = 0 there, which contributes
// exactly nothing. The list reads and computes less, the whole is faster per neuron; which wins depends on the machine
// and on how many rows share the work, so the density at which they meet is measured (see ffn_costs.py).
#pragma once

#include <cstdint>
#include <vector>

namespace glass {

// Above this density all inputs' columns are read, as the processor fetches ahead of whoever reads on without gaps.
inline constexpr float kInputsBreakEven = 0.9f;

enum class FfnPath : uint8_t { cheapest, union_list, all_neurons };

// With `num_rows` tokens, unions of more than `density` of a layer's neurons are cheaper computed as a whole.
struct BreakEven {
    int32_t num_rows;
    float density;
};

class FfnChoice {
public:
    // Points ascend in num_rows, densities lie in (0, 1]; none = always the list. Throws std::invalid_argument.
    void set(std::vector<BreakEven> points);

    // For measurements and tests: whatever the costs say.
    void force(FfnPath path) { forced_ = path; }

    // Linear between the points, constant beyond them.
    float break_even(int32_t num_rows) const;

    // Whether to compute all `intermediate_size` neurons where `kept` of them are wanted by some row.
    bool all_neurons(int32_t num_rows, int32_t kept, int32_t intermediate_size) const;

    // The same of inputs and their columns.
    bool all_inputs(int32_t kept, int32_t hidden_size) const;

private:
    std::vector<BreakEven> points_;
    FfnPath forced_ = FfnPath::cheapest;
};

}  // namespace glass
