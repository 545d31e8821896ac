#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "elementwise.h"
#include "philox.h"

namespace glass {
namespace {

constexpr int kUniformBits = 53;

// The unit of the cumulative distribution, in [0, total), that the request's uniform number points at.
int64_t target_of(const SampleRequest& request, int64_t total) {
    const uint64_t bits = philox(request.seed, request.index + 1) >> (64 - kUniformBits);
    return static_cast<int64_t>(static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(total) >> kUniformBits);
}

// The weight at which top_p is reached; `total` when it is off.
int64_t nucleus_limit(double top_p, int64_t total) {
    if (top_p >= 1.0) return total;
    const auto limit = static_cast<int64_t>(std::ceil(top_p * static_cast<double>(total)));
    return std::min(std::max<int64_t>(limit, 1), total);
}

int64_t least_weight(double min_p) {
    return std::max<int64_t>(static_cast<int64_t>(std::ceil(std::ldexp(min_p, kWeightBits))), 1);
}

void adjust(const LogitAdjustments& how, float* scores) {
    for (int32_t i = 0; i < how.num_seen; ++i) {
        float& score = scores[how.seen[i]];
        if (how.repetition != 1.0f) score = score > 0.0f ? score / how.repetition : score * how.repetition;
        if (how.counts[i] > 0) score -= static_cast<float>(how.frequency * how.counts[i] + how.presence);
    }
    for (int32_t i = 0; i < how.num_biased; ++i) scores[how.biased[i]] += how.biases[i];
    for (int32_t i = 0; i < how.num_masked; ++i) scores[how.masked[i]] = -INFINITY;
}

void check_ids(const int32_t* ids, int32_t count, int32_t vocab_size, const char* what) {
    for (int32_t i = 0; i < count; ++i) {
        if (ids[i] < 0 || ids[i] >= vocab_size) {
            throw std::invalid_argument(std::string(what) + ": token id " + std::to_string(ids[i]) +
                                        " lies outside the vocabulary");
        }
    }
}

void check_request(const SampleRequest& request, int32_t vocab_size) {
    if (!(request.temperature >= 0.0) || !std::isfinite(request.temperature)) {
        throw std::invalid_argument("temperature must be at least 0 and finite");
    }
    if (!(request.top_p >= 0.0) || !(request.min_p >= 0.0 && request.min_p <= 1.0)) {
        throw std::invalid_argument("top_p must be at least 0, and min_p between 0 and 1");
    }
    const LogitAdjustments& how = request.adjustments;
    check_ids(how.seen, how.num_seen, vocab_size, "penalties");
    check_ids(how.biased, how.num_biased, vocab_size, "logit_bias");
    check_ids(how.masked, how.num_masked, vocab_size, "masked tokens");
}

}  // namespace

void check_requests(const std::vector<SampleRequest>& requests, int64_t num_rows, int32_t vocab_size) {
    if (static_cast<int64_t>(requests.size()) != num_rows) {
        throw std::invalid_argument("samples: expected one per token whose logits are wanted");
    }
    for (const SampleRequest& request : requests) check_request(request, vocab_size);
}

Drawn Sampler::draw(const float* logits, int32_t vocab_size, const SampleRequest& request) {
    Drawn drawn;
    const Largest raw = largest(logits, vocab_size);
    if (!raw.finite) {
        drawn.problem = DrawProblem::not_finite;
        return drawn;
    }
    const float* scores = logits;
    Largest best = raw;
    if (request.adjusts) {
        scores_.assign(logits, logits + vocab_size);
        adjust(request.adjustments, scores_.data());
        scores = scores_.data();
        best = largest(scores, vocab_size);
        if (!std::isfinite(best.value)) {
            drawn.problem = DrawProblem::nothing_left;
            return drawn;
        }
    }
    drawn.token = request.temperature == 0.0 ? best.index : choose(scores, vocab_size, best.value, request);
    if (request.num_logprobs >= 0) add_logprobs(logits, vocab_size, raw.value, request, drawn);
    return drawn;
}

int32_t Sampler::choose(const float* scores, int32_t size, float best, const SampleRequest& request) {
    if (request.top_k > 0 && request.top_k < size) {
        keep_largest(scores, size, best, request);
        const int64_t total = std::accumulate(id_weights_.begin(), id_weights_.end(), int64_t{0});
        return choose_candidate(nucleus_limit(request.top_p, total), request);
    }
    const int64_t total = weigh(scores, size, best, inverse_temperature(request.temperature));
    if (request.top_p >= 1.0 && request.min_p <= 0.0) return choose_among_all(total, request);
    const int64_t limit = nucleus_limit(request.top_p, total);
    // What is lighter than (total - limit) / size holds less than total - limit together: it is not in the nucleus.
    keep_heaviest(std::max(least_weight(request.min_p), (total - limit) / size));
    return choose_candidate(limit, request);
}

// Weights of all tokens and of their blocks; returns the total.
int64_t Sampler::weigh(const float* scores, int32_t size, float best, double inverse) {
    const auto blocks = static_cast<size_t>(num_weight_blocks(size));
    weights_.resize(static_cast<size_t>(size));
    sums_.resize(blocks);
    maxima_.resize(blocks);
    fill_weights(scores, size, best, inverse, weights_.data());
    summarize_weights(weights_.data(), size, sums_.data(), maxima_.data());
    return std::accumulate(sums_.begin(), sums_.end(), int64_t{0});
}

int32_t Sampler::choose_among_all(int64_t total, const SampleRequest& request) const {
    int64_t rest = target_of(request, total);
    size_t block = 0;
    while (rest >= sums_[block]) rest -= sums_[block++];
    size_t token = block * kWeightBlock;
    while (rest >= weights_[token]) rest -= weights_[token++];
    return static_cast<int32_t>(token);
}

// Drops candidates by their weights, asked in the order of ids.
template <typename Fn>
void Sampler::keep_if(const Fn& is_kept) {
    size_t count = 0;
    for (size_t i = 0; i < ids_.size(); ++i) {
        const int64_t weight = id_weights_[i];
        ids_[count] = ids_[i];
        id_weights_[count] = weight;
        count += is_kept(weight) ? 1 : 0;
    }
    ids_.resize(count);
    id_weights_.resize(count);
}

// Candidates become the top_k, but for those whose weight is 0.
void Sampler::keep_largest(const float* scores, int32_t size, float best, const SampleRequest& request) {
    find_largest(scores, size, request.top_k, float_scratch_, ids_);
    float_scratch_.clear();
    for (const int32_t id : ids_) float_scratch_.push_back(scores[id]);
    id_weights_.resize(ids_.size());
    fill_weights(float_scratch_.data(), static_cast<int32_t>(ids_.size()), best,
                 inverse_temperature(request.temperature), id_weights_.data());
    keep_if([](int64_t weight) { return weight > 0; });
}

// Candidates become all tokens that weigh `least` or more.
void Sampler::keep_heaviest(int64_t least) {
    const auto num_blocks = std::count_if(maxima_.begin(), maxima_.end(), [&](int64_t w) { return w >= least; });
    ids_.resize(static_cast<size_t>(num_blocks) * kWeightBlock);
    id_weights_.resize(ids_.size());
    size_t count = 0;
    for (size_t block = 0; block < maxima_.size(); ++block) {
        if (maxima_[block] < least) continue;
        const size_t last = std::min((block + 1) * kWeightBlock, weights_.size());
        for (size_t i = block * kWeightBlock; i < last; ++i) {  // without a branch, which nothing could predict
            ids_[count] = static_cast<int32_t>(i);
            id_weights_[count] = weights_[i];
            count += weights_[i] >= least ? 1 : 0;
        }
    }
    ids_.resize(count);
    id_weights_.resize(count);
}

// Drops candidates outside the nucleus, ties from the highest id on.
void Sampler::keep_nucleus(int64_t limit) {
    NucleusCut cut = find_nucleus(id_weights_, limit, weight_scratch_);
    keep_if([&](int64_t weight) {
        const bool is_tie = weight == cut.threshold;
        const bool kept = (weight > cut.threshold) | (is_tie & (cut.num_ties > 0));
        cut.num_ties -= is_tie ? 1 : 0;
        return kept;
    });
}

int32_t Sampler::choose_candidate(int64_t limit, const SampleRequest& request) {
    if (request.top_p < 1.0) keep_nucleus(limit);
    const int64_t least = least_weight(request.min_p);
    const auto alive = [&](int64_t weight) { return weight >= least ? weight : 0; };
    int64_t total = 0;
    for (const int64_t weight : id_weights_) total += alive(weight);
    int64_t rest = target_of(request, total);
    size_t i = 0;
    while (rest >= alive(id_weights_[i])) rest -= alive(id_weights_[i++]);
    return ids_[i];
}

void Sampler::add_logprobs(const float* logits, int32_t size, float best, const SampleRequest& request, Drawn& drawn) {
    const auto total = static_cast<double>(weigh(logits, size, best, 1.0));
    const double log_total = std::log(std::ldexp(total, -kWeightBits));
    const auto logprob = [&](int32_t id) {
        return static_cast<double>(logits[id]) - static_cast<double>(best) - log_total;
    };
    drawn.has_logprobs = true;
    drawn.logprob = logprob(drawn.token);
    const int32_t num_top = std::min(request.num_logprobs, size);
    if (num_top == 0) return;
    find_largest(logits, size, num_top, float_scratch_, ids_);
    std::stable_sort(ids_.begin(), ids_.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    ids_.resize(static_cast<size_t>(num_top));
    for (const int32_t id : ids_) drawn.top.emplace_back(id, logprob(id));
}

}  // namespace glass
