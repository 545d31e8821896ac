#include "elementwise.h"

#include <bit>
#include <cmath>

#include "exponential.h"
#include "kernels/kernels.h"

namespace glass {
namespace {

constexpr int32_t kLanes = 16;  // independent partial sums: the order of additions is fixed, and vectorizes

GLASS_CLONES float mean_square(const float* x, int32_t size) {
    float lanes[kLanes] = {};
    int32_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        for (int32_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
    }
    for (; i < size; ++i) lanes[i % kLanes] += x[i] * x[i];
    for (int32_t width = kLanes / 2; width > 0; width /= 2) {
        for (int32_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    }
    return lanes[0] / static_cast<float>(size);
}

GLASS_CLONES void scale_by(const float* x, const float* weight, float scale, int32_t size, float* out) {
    for (int32_t i = 0; i < size; ++i) out[i] = weight[i] * (x[i] * scale);
}

GLASS_CLONES void silu_product(float* gate, const float* up, int32_t size) {
    for (int32_t i = 0; i < size; ++i) gate[i] = gate[i] / (1.0f + fast_exp(-gate[i])) * up[i];
}

void gelu_product(float* gate, const float* up, int32_t size) {
    constexpr float kInverseRoot2 = 0.70710678118654752440f;
    for (int32_t i = 0; i < size; ++i) {
        gate[i] = gate[i] * 0.5f * (1.0f + std::erf(gate[i] * kInverseRoot2)) * up[i];
    }
}

GLASS_CLONES void gelu_tanh_product(float* gate, const float* up, int32_t size) {
    constexpr float kRoot2OverPi = 0.79788456080286535588f, kCubic = 0.044715f;
    for (int32_t i = 0; i < size; ++i) {
        const float g = gate[i];
        const float inner = kRoot2OverPi * (g + kCubic * g * g * g);
        const float tanh = 1.0f - 2.0f / (fast_exp(2.0f * inner) + 1.0f);
        gate[i] = 0.5f * g * (1.0f + tanh) * up[i];
    }
}

// The largest of `size` scores; `poison` becomes NaN when one is not finite.
GLASS_CLONES float block_maximum(const float* scores, int32_t size, float* poison) {
    float best[kLanes], check[kLanes] = {};
    for (float& value : best) value = -INFINITY;
    int32_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        for (int32_t lane = 0; lane < kLanes; ++lane) {
            best[lane] = scores[i + lane] > best[lane] ? scores[i + lane] : best[lane];
            check[lane] += scores[i + lane] * 0.0f;
        }
    }
    for (; i < size; ++i) {
        best[0] = scores[i] > best[0] ? scores[i] : best[0];
        check[0] += scores[i] * 0.0f;
    }
    for (int32_t lane = 1; lane < kLanes; ++lane) {
        best[0] = best[lane] > best[0] ? best[lane] : best[0];
        check[0] += check[lane];
    }
    *poison += check[0];
    return best[0];
}

}  // namespace

void rms_norm(const float* x, const float* weight, int32_t size, float eps, float* out) {
    scale_by(x, weight, 1.0f / std::sqrt(mean_square(x, size) + eps), size, out);
}

GLASS_CLONES void rotate(float* x, int32_t num_heads, const float* cosines, const float* sines, int32_t half) {
    for (int32_t head = 0; head < num_heads; ++head) {
        float *__restrict first = x + 2 * head * half, *__restrict second = first + half;
        for (int32_t i = 0; i < half; ++i) {
            const float a = first[i], b = second[i];
            first[i] = a * cosines[i] - b * sines[i];
            second[i] = b * cosines[i] + a * sines[i];
        }
    }
}

GLASS_CLONES void subtract_codes(const float* x, const int8_t* codes, const float* scales, int32_t size, float* out) {
    int32_t start = 0;
    for (; start + kGroup <= size; start += kGroup) {
        const float scale = scales[start / kGroup];
        for (int32_t i = start; i < start + kGroup; ++i) out[i] = x[i] - scale * static_cast<float>(codes[i]);
    }
    for (int32_t i = start; i < size; ++i) out[i] = x[i] - scales[i / kGroup] * static_cast<float>(codes[i]);
}

GLASS_CLONES void split_pairs(const float* pairs, int32_t size, float* first, float* second) {
    for (int32_t i = 0; i < size; ++i) {
        first[i] = pairs[2 * i];
        second[i] = pairs[2 * i + 1];
    }
}

void gated_activation(Activation activation, float* gate, const float* up, int32_t size) {
    if (activation == Activation::silu) {
        silu_product(gate, up, size);
    } else if (activation == Activation::gelu) {
        gelu_product(gate, up, size);
    } else {
        gelu_tanh_product(gate, up, size);
    }
}

void add_gathered(float* values, const float* bias, const int32_t* index, int32_t size) {
    for (int32_t i = 0; i < size; ++i) values[i] += bias[index[i]];
}

GLASS_CLONES void keep_listed(float* values, const int32_t* index, const uint32_t* words, int32_t size) {
    for (int32_t i = 0; i < size; ++i) {
        const auto at = static_cast<uint32_t>(index[i]);
        const uint32_t kept = 0u - ((words[at / 32] >> (at % 32)) & 1u);
        values[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(values[i]) & kept);
    }
}

GLASS_CLONES void scale(float* y, float factor, int32_t size) {
    for (int32_t i = 0; i < size; ++i) y[i] *= factor;
}

GLASS_CLONES void add(float* y, const float* x, int32_t size) {
    for (int32_t i = 0; i < size; ++i) y[i] += x[i];
}

Largest largest(const float* scores, int32_t size) {
    constexpr int32_t kBlock = 512;
    Largest best{-INFINITY, 0, true};
    float poison = 0.0f;
    for (int32_t start = 0; start < size; start += kBlock) {
        const int32_t count = size - start < kBlock ? size - start : kBlock;
        const float value = block_maximum(scores + start, count, &poison);
        if (!(value > best.value)) continue;
        best.value = value;
        best.index = start;
        while (scores[best.index] != value) ++best.index;
    }
    best.finite = poison == 0.0f;
    return best;
}

GLASS_CLONES double sum_squares(const float* x, int32_t size) {
    double lanes[kLanes] = {};
    int32_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        for (int32_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(x[i + lane]);
        }
    }
    for (; i < size; ++i) lanes[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    double total = 0.0;
    for (double lane : lanes) total += lane;
    return total;
}

GLASS_CLONES void add_normalized(const float* x, double scale, int32_t size, float* sum_abs, float* sum_of_squares) {
    for (int32_t i = 0; i < size; ++i) {
        const auto value = static_cast<float>(static_cast<double>(x[i]) * scale);
        sum_abs[i] += value < 0.0f ? -value : value;
        sum_of_squares[i] += value * value;
    }
}

}  // namespace glass
