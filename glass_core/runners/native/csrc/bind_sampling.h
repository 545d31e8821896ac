#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "sampling.h"

namespace glass {

// One request per row: None for greedy, or (temperature, top_k, top_p, min_p, (seed's lower and upper 64 bits), index,
// num_logprobs, adjustments), where adjustments is None or (repetition, frequency, presence, seen, counts, biased,
// biases, masked). The caller keeps the arrays alive.
std::vector<SampleRequest> sample_requests_of(nanobind::list items);

// (token, problem, None or (logprob, [(token, logprob), …])) per row
nanobind::list drawn_list(const std::vector<Drawn>& drawn);

// Adds `draw(logits, requests)`, the sampler by itself, for tests.
void bind_sampling(nanobind::module_& module);

}  // namespace glass
