#include "thread_pool.h"

#include <chrono>
#include <stdexcept>

namespace glass {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `value` differs from `old`: spins for a while, then sleeps in the kernel.
void await_change(const std::atomic<uint32_t>& value, uint32_t old, int spin_microseconds) {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::microseconds(spin_microseconds);
    do {
        for (int i = 0; i < 64; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            relax();
        }
    } while (Clock::now() < deadline);
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, int spin_microseconds)
    : num_threads_(num_threads), spin_microseconds_(spin_microseconds) {
    if (num_threads < 1) throw std::invalid_argument("num_threads must be at least 1");
    failures_.resize(static_cast<size_t>(num_threads));
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(Task task, void* context) {
    task_ = task;
    context_ = context;
    running_.store(static_cast<uint32_t>(num_threads_ - 1), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    execute(0);
    uint32_t left;
    while ((left = running_.load(std::memory_order_acquire)) != 0) await_change(running_, left, spin_microseconds_);
    std::exception_ptr first;
    for (std::exception_ptr& failure : failures_) {
        if (failure && !first) first = failure;
        failure = nullptr;
    }
    if (first) std::rethrow_exception(first);
}

void ThreadPool::execute(int thread) {
    try {
        task_(context_, thread, num_threads_);
    } catch (...) {
        failures_[static_cast<size_t>(thread)] = std::current_exception();
    }
}

void ThreadPool::work(int thread) {
    uint32_t seen = 0;
    for (;;) {
        await_change(generation_, seen, spin_microseconds_);
        // only one generation can have passed: run() waits for every worker
        ++seen;
        if (stop_.load(std::memory_order_relaxed)) return;
        execute(thread);
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
}

void ThreadPool::barrier() {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(num_threads_)) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        return;
    }
    await_change(phase_, phase, spin_microseconds_);
}

}  // namespace glass
