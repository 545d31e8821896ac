// From one row of logits to one token: the sampler of glass_core/runners/sampling.py, bit for bit, without sorting the
// vocabulary. Order: penalties, bias, mask; temperature; top_k, top_p, min_p; one draw in the order of token ids.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "weights.h"

namespace glass {

// What changes logits before the draw. Ids lie inside the vocabulary and are distinct in each list; the arrays belong to
// the caller.
struct LogitAdjustments {
    float repetition = 1.0f;
    double frequency = 0.0;
    double presence = 0.0;
    const int32_t* seen = nullptr;    // tokens of the prompt and of the answer
    const int32_t* counts = nullptr;  // how often the answer has them; 0 = only the prompt does
    int32_t num_seen = 0;
    const int32_t* biased = nullptr;
    const float* biases = nullptr;
    int32_t num_biased = 0;
    const int32_t* masked = nullptr;  // these cannot be drawn
    int32_t num_masked = 0;
};

// How to draw one row's token. `temperature` 0 is greedy; `top_k` 0, `top_p` >= 1 and `min_p` 0 are off.
struct SampleRequest {
    double temperature = 0.0;
    double top_p = 1.0;
    double min_p = 0.0;
    int32_t top_k = 0;
    std::array<uint64_t, 2> seed = {};  // lower half first
    uint64_t index = 0;                 // of the draw
    int32_t num_logprobs = -1;          // how many most probable tokens are wanted; -1 = no log-probabilities at all
    bool adjusts = false;
    LogitAdjustments adjustments;
};

enum class DrawProblem : int32_t { none, not_finite, nothing_left };

// A token, or why there is none. `logprob` and `top` (descending, ties by id) are of the raw logits.
struct Drawn {
    int32_t token = -1;
    DrawProblem problem = DrawProblem::none;
    bool has_logprobs = false;
    double logprob = 0.0;
    std::vector<std::pair<int32_t, double>> top;
};

// Throws std::invalid_argument for requests that cannot be served, or are not one per row of logits.
void check_requests(const std::vector<SampleRequest>& requests, int64_t num_rows, int32_t vocab_size);

// Draws tokens of one vocabulary; holds scratch memory, so one row at a time.
class Sampler {
public:
    // `logits` (vocab_size,) are left unchanged. The request has passed check_requests.
    Drawn draw(const float* logits, int32_t vocab_size, const SampleRequest& request);

private:
    int32_t choose(const float* scores, int32_t size, float best, const SampleRequest& request);
    int32_t choose_among_all(int64_t total, const SampleRequest& request) const;
    int32_t choose_candidate(int64_t limit, const SampleRequest& request);
    int64_t weigh(const float* scores, int32_t size, float best, double inverse);
    void keep_largest(const float* scores, int32_t size, float best, const SampleRequest& request);
    void keep_heaviest(int64_t least);
    void keep_nucleus(int64_t limit);
    template <typename Fn>
    void keep_if(const Fn& is_kept);
    void add_logprobs(const float* logits, int32_t size, float best, const SampleRequest& request, Drawn& drawn);

    std::vector<float> scores_;     // adjusted logits
    std::vector<int64_t> weights_;  // of the whole vocabulary, with the sums and maxima of its blocks
    std::vector<int64_t> sums_;
    std::vector<int64_t> maxima_;
    std::vector<int32_t> ids_;        // candidates, ascending
    std::vector<int64_t> id_weights_;
    std::vector<float> float_scratch_;
    std::vector<int64_t> weight_scratch_;
};

}  // namespace glass
