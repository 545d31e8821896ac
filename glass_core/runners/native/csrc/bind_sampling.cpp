#include "bind_sampling.h"

#include <nanobind/ndarray.h>

#include <stdexcept>

namespace nb = nanobind;

namespace glass {
namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The array's values; no copy is made, since the copy would not outlive this call.
template <typename T>
std::pair<const T*, int32_t> view(nb::handle item) {
    const auto array = nb::cast<Array<T>>(item, false);
    return {array.data(), static_cast<int32_t>(array.size())};
}

LogitAdjustments adjustments_of(nb::handle item) {
    const auto values = nb::cast<nb::tuple>(item);
    if (values.size() != 8) throw std::invalid_argument("adjustments of logits have 8 values");
    LogitAdjustments how;
    how.repetition = static_cast<float>(nb::cast<double>(values[0]));
    how.frequency = nb::cast<double>(values[1]);
    how.presence = nb::cast<double>(values[2]);
    const auto [seen, num_seen] = view<int32_t>(values[3]);
    const auto [counts, num_counts] = view<int32_t>(values[4]);
    const auto [biased, num_biased] = view<int32_t>(values[5]);
    const auto [biases, num_biases] = view<float>(values[6]);
    const auto [masked, num_masked] = view<int32_t>(values[7]);
    if (num_seen != num_counts || num_biased != num_biases) {
        throw std::invalid_argument("every token that was seen needs a count, every one with a bias its value");
    }
    how.seen = seen;
    how.counts = counts;
    how.num_seen = num_seen;
    how.biased = biased;
    how.biases = biases;
    how.num_biased = num_biased;
    how.masked = masked;
    how.num_masked = num_masked;
    return how;
}

SampleRequest request_of(nb::handle item) {
    SampleRequest request;
    if (item.is_none()) return request;
    const auto values = nb::cast<nb::tuple>(item);
    if (values.size() != 8) throw std::invalid_argument("a sample request has 8 values");
    request.temperature = nb::cast<double>(values[0]);
    request.top_k = nb::cast<int32_t>(values[1]);
    request.top_p = nb::cast<double>(values[2]);
    request.min_p = nb::cast<double>(values[3]);
    const auto seed = nb::cast<nb::tuple>(values[4]);
    request.seed = {nb::cast<uint64_t>(seed[0]), nb::cast<uint64_t>(seed[1])};
    request.index = nb::cast<uint64_t>(values[5]);
    request.num_logprobs = nb::cast<int32_t>(values[6]);
    request.adjusts = !values[7].is_none();
    if (request.adjusts) request.adjustments = adjustments_of(values[7]);
    return request;
}

nb::object logprobs_of(const Drawn& drawn) {
    nb::list top;
    for (const auto& [token, logprob] : drawn.top) top.append(nb::make_tuple(token, logprob));
    return nb::make_tuple(drawn.logprob, top);
}

nb::list draw(Logits logits, nb::list items) {
    const std::vector<SampleRequest> requests = sample_requests_of(items);
    const auto vocab_size = static_cast<int32_t>(logits.shape(1));
    if (vocab_size == 0) throw std::invalid_argument("logits: expected at least one column");
    check_requests(requests, static_cast<int64_t>(logits.shape(0)), vocab_size);
    std::vector<Drawn> drawn;
    {
        nb::gil_scoped_release unlocked;
        Sampler sampler;
        for (size_t i = 0; i < requests.size(); ++i) {
            drawn.push_back(sampler.draw(logits.data() + i * logits.shape(1), vocab_size, requests[i]));
        }
    }
    return drawn_list(drawn);
}

}  // namespace

std::vector<SampleRequest> sample_requests_of(nb::list items) {
    std::vector<SampleRequest> requests;
    for (nb::handle item : items) requests.push_back(request_of(item));
    return requests;
}

nb::list drawn_list(const std::vector<Drawn>& drawn) {
    nb::list items;
    for (const Drawn& row : drawn) {
        nb::object logprobs = nb::none();
        if (row.has_logprobs) logprobs = logprobs_of(row);
        items.append(nb::make_tuple(row.token, static_cast<int32_t>(row.problem), logprobs));
    }
    return items;
}

void bind_sampling(nb::module_& module) { module.def("draw", &draw, nb::arg("logits"), nb::arg("requests")); }

}  // namespace glass
