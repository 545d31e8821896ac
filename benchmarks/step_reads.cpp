// What this machine's memory allows of refinement's gain: the reads of a decode step of the default model (int4), of dense
// and of refined tokens in turns, by two threads that only load and prefetch. Nothing is computed, so no kernels, however
// good, can have a larger ratio with the same pieces.
//
//   g++ -std=c++20 -O3 -march=native -pthread benchmarks/step_reads.cpp -o step_reads && ./step_reads [ROUNDS]
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr int kLayers = 30, kThreads = 2, kTokens = 8;  // lists of so many tokens, so that no token repeats the one before

// Pieces that lie one after the other. The threads own halves.
struct Matrix {
    size_t count;
    size_t piece_bytes;
    const uint8_t* data = nullptr;
    size_t bytes() const { return count * piece_bytes; }
};

struct Layer {
    Matrix qkv{960, 360}, o{576, 360};
    Matrix gate_up{3072, 360}, down{1536, 288}, down_scales{48, 2304};
    Matrix inputs{576, 1536}, input_scales{18, 6144}, input_units{1, 12288};
};

// A kind of token: the shares of inputs and of columns of down that it keeps, measured on answers of the model.
struct Kind {
    double reads, inputs, down;
    bool dense() const { return reads == 1.0; }
};
constexpr Kind kKinds[] = {{1.0, 1.0, 1.0},      {0.8, 0.853, 0.696}, {0.7, 0.765, 0.570},
                           {0.6, 0.671, 0.453}, {0.5, 0.574, 0.343}, {0.4, 0.469, 0.247}};

// How lists are prefetched: so many times, evenly over so many bytes ahead.
struct Prefetching {
    int passes;
    size_t bytes;
};
constexpr Prefetching kWays[] = {{1, 8192}, {2, 8192}, {4, 8192}, {3, 12288}};

using List = std::vector<int>;

void prefetch(const uint8_t* piece, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(piece + at, 0, 2);
}

uint64_t load(const uint8_t* piece, size_t bytes) {
    uint64_t sum = 0, word;
    for (size_t at = 0; at + sizeof word <= bytes; at += sizeof word) {
        std::memcpy(&word, piece + at, sizeof word);
        sum ^= word;
    }
    return sum;
}

uint64_t read_half(const Matrix& matrix, int thread) {
    const size_t half = matrix.bytes() / kThreads;
    const uint8_t* from = matrix.data + half * static_cast<size_t>(thread);
    uint64_t sum = 0;
    for (size_t at = 0; at < half; at += 512) {
        const size_t bytes = std::min<size_t>(512, half - at);
        prefetch(from + at + 4096, bytes);
        sum ^= load(from + at, bytes);
    }
    return sum;
}

uint64_t read_list(const Matrix& matrix, const List& list, const Prefetching& way) {
    const auto piece = [&](size_t i) { return matrix.data + static_cast<size_t>(list[i]) * matrix.piece_bytes; };
    const size_t ahead = std::max<size_t>(1, way.bytes / matrix.piece_bytes), passes = static_cast<size_t>(way.passes);
    uint64_t sum = 0;
    for (size_t i = 0; i < list.size(); ++i) {
        for (size_t pass = passes; pass > 0; --pass) {
            const size_t next = i + (ahead * pass + passes - 1) / passes;
            if (next < list.size()) prefetch(piece(next), matrix.piece_bytes);
        }
        sum ^= load(piece(i), matrix.piece_bytes);
    }
    return sum;
}

// Threads meet here.
class Meeting {
public:
    void wait() {
        const int turn = turn_.load();
        if (arrived_.fetch_add(1) + 1 == kThreads) {
            arrived_ = 0;
            ++turn_;
        } else {
            while (turn_.load() == turn) {
            }
        }
    }

private:
    std::atomic<int> arrived_{0}, turn_{0};
};

// The chosen inputs and columns of down, by token, layer and thread.
struct Lists {
    std::vector<List> inputs, down;
};

List choose(std::mt19937& random, size_t count, int thread, double share) {
    std::uniform_real_distribution<double> uniform;
    List list;
    const size_t half = count / kThreads, first = half * static_cast<size_t>(thread);
    for (size_t i = first; i < first + half; ++i) {
        if (uniform(random) < share) list.push_back(static_cast<int>(i));
    }
    return list;
}

Lists choose_all(const Kind& kind) {
    std::mt19937 random(1);
    Lists lists;
    const Layer layer;
    for (int i = 0; i < kTokens * kLayers * kThreads; ++i) {
        lists.inputs.push_back(choose(random, layer.inputs.count, i % kThreads, kind.inputs));
        lists.down.push_back(choose(random, layer.down.count, i % kThreads, kind.down));
    }
    return lists;
}

double megabytes(const Kind& kind, const Matrix& head) {
    const Layer layer;
    double bytes = static_cast<double>(layer.qkv.bytes() + layer.o.bytes() + layer.down_scales.bytes());
    bytes += kind.down * static_cast<double>(layer.down.bytes());
    bytes += kind.dense() ? static_cast<double>(layer.gate_up.bytes())
                          : kind.inputs * static_cast<double>(layer.inputs.bytes()) +
                                static_cast<double>(layer.input_scales.bytes() + layer.input_units.bytes());
    return (kLayers * bytes + static_cast<double>(head.bytes())) / 1e6;
}

class Model {
public:
    Model() {
        std::vector<Matrix*> all{&head_};
        for (Layer& layer : layers_) {
            for (Matrix* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down, &layer.down_scales, &layer.inputs,
                                   &layer.input_scales, &layer.input_units}) {
                all.push_back(matrix);
            }
        }
        constexpr size_t kPage = size_t{2} << 20;
        size_t size = kPage;
        for (const Matrix* matrix : all) size += matrix->bytes();
        size = (size + kPage - 1) / kPage * kPage;
        auto* memory = static_cast<uint8_t*>(std::aligned_alloc(kPage, size));
        if (memory == nullptr) std::abort();
        madvise(memory, size, MADV_HUGEPAGE);
        std::memset(memory, 1, size);
        for (Matrix* matrix : all) {
            matrix->data = memory;
            memory += matrix->bytes();
        }
    }

    const Matrix& head() const { return head_; }

    // One thread's part of a token; the threads meet where a step hands over.
    uint64_t read_token(const Kind& kind, const Lists& lists, int token, int thread, const Prefetching& way, Meeting& meeting) const {
        uint64_t sum = 0;
        for (int l = 0; l < kLayers; ++l) {
            const Layer& layer = layers_[l];
            const auto list = static_cast<size_t>((token * kLayers + l) * kThreads + thread);
            for (const Matrix* matrix : {&layer.qkv, &layer.o}) {
                sum ^= read_half(*matrix, thread);
                meeting.wait();
            }
            if (kind.dense()) {
                sum ^= read_half(layer.gate_up, thread) ^ read_half(layer.down, thread);
            } else {
                sum ^= read_list(layer.inputs, lists.inputs[list], way) ^ read_half(layer.input_scales, thread);
                sum ^= load(layer.input_units.data, layer.input_units.bytes());
                meeting.wait();
                sum ^= read_list(layer.down, lists.down[list], way);
            }
            sum ^= read_half(layer.down_scales, thread);
            meeting.wait();
        }
        sum ^= read_half(head_, thread);
        meeting.wait();
        return sum;
    }

private:
    Layer layers_[kLayers];
    Matrix head_{49152, 616};
};

struct Run {
    Kind kind;
    Prefetching way;
    Lists lists;
    std::vector<double> milliseconds;
};

double quantile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

void measure(const Model& model, std::vector<Run>& runs, int rounds) {
    using Clock = std::chrono::steady_clock;
    Meeting meeting;
    std::atomic<uint64_t> sums{0};
    const auto work = [&](int thread) {
        for (int i = 0; i < rounds * static_cast<int>(runs.size()); ++i) {
            Run& run = runs[static_cast<size_t>(i) % runs.size()];
            meeting.wait();
            const auto start = Clock::now();
            for (int token = 0; token < kTokens; ++token) {
                sums ^= model.read_token(run.kind, run.lists, token, thread, run.way, meeting);
            }
            const std::chrono::duration<double, std::milli> taken = Clock::now() - start;
            if (thread == 0) run.milliseconds.push_back(taken.count() / kTokens);
        }
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    if (sums == 1) std::puts("");  // the loads must not be left out
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 25;
    const Model model;
    std::vector<Run> runs;
    for (const Kind& kind : kKinds) {
        const Lists lists = choose_all(kind);
        for (const Prefetching& way : kWays) {
            runs.push_back({kind, way, lists, {}});
            if (kind.dense()) break;
        }
    }
    measure(model, runs, rounds);
    const std::vector<double>& dense = runs.front().milliseconds;
    std::printf("FFN reads  MB/token  bytes allow  ms/token  ratio to dense (10 - 90 %%), prefetched n times over k KB\n");
    for (const Run& run : runs) {
        std::vector<double> ratios;
        for (size_t i = 0; i < dense.size(); ++i) ratios.push_back(dense[i] / run.milliseconds[i]);
        const double size = megabytes(run.kind, model.head());
        std::printf("%9.1f  %8.1f  %11.2f  %8.2f  %.2f (%.2f - %.2f)", run.kind.reads, size,
                    megabytes(kKinds[0], model.head()) / size, quantile(run.milliseconds, 0.5), quantile(ratios, 0.5),
                    quantile(ratios, 0.1), quantile(ratios, 0.9));
        std::printf(run.kind.dense() ? "\n" : ", %d over %zu\n", run.way.passes, run.way.bytes / 1024);
    }
}
