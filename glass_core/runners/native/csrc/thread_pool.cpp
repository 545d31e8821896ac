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
    : num_threads_(num_threads), spin_microseconds_(spin_microseconds), next_slot_(static_cast<uint32_t>(num_threads)) {
    if (num_threads < 1) throw std::invalid_argument("num_threads must be at least 1");
    failures_.resize(static_cast<size_t>(num_threads));
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(Task task, void* context) {
    task_ = task;
    context_ = context;
    unfinished_.store(static_cast<uint32_t>(num_threads_), std::memory_order_relaxed);
    next_slot_.store(0, std::memory_order_release);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
    take_slots();
    uint32_t left;
    while ((left = unfinished_.load(std::memory_order_acquire)) != 0) {
        await_change(unfinished_, left, spin_microseconds_);
    }
    std::exception_ptr first;
    for (std::exception_ptr& failure : failures_) {
        if (failure && !first) first = failure;
        failure = nullptr;
    }
    if (first) std::rethrow_exception(first);
}

void ThreadPool::take_slots() {
    const auto slots = static_cast<uint32_t>(num_threads_);
    // look before taking: a worker that is late must not count next_slot_ up without end
    while (next_slot_.load(std::memory_order_relaxed) < slots) {
        const uint32_t slot = next_slot_.fetch_add(1, std::memory_order_acq_rel);
        if (slot >= slots) return;
        execute(static_cast<int>(slot));
        if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
    }
}

void ThreadPool::execute(int slot) {
    try {
        task_(context_, slot, num_threads_);
    } catch (...) {
        failures_[static_cast<size_t>(slot)] = std::current_exception();
    }
}

void ThreadPool::work() {
    uint32_t seen = 0;
    for (;;) {
        await_change(phase_, seen, spin_microseconds_);
        // several phases may have passed meanwhile: the others did this thread's part
        seen = phase_.load(std::memory_order_acquire);
        if (stop_.load(std::memory_order_relaxed)) return;
        take_slots();
    }
}

}  // namespace glass
