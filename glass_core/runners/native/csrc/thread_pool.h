// A fixed team of threads for the phases of one step: workers spin briefly for the next phase, then sleep, because
// phases follow each other within microseconds while a step runs and the box is shared when it does not.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace glass {

class ThreadPool {
public:
    // num_threads >= 1 counts the calling thread, which is thread 0.
    explicit ThreadPool(int num_threads, int spin_microseconds = 50);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }

    // Runs fn(thread, num_threads) once on every thread and returns when all are done. The first exception, by thread
    // number, is thrown again here. Not reentrant: one caller at a time, and not from within fn.
    template <typename Fn>
    void parallel(Fn&& fn) {
        using Plain = std::remove_reference_t<Fn>;
        run([](void* context, int thread, int threads) { (*static_cast<Plain*>(context))(thread, threads); },
            const_cast<void*>(static_cast<const void*>(&fn)));
    }

    // Inside fn: waits until every thread of the team got here. Every thread must call it equally often, so fn must
    // not throw before its last barrier.
    void barrier();

private:
    using Task = void (*)(void* context, int thread, int threads);

    void run(Task task, void* context);
    void execute(int thread);
    void work(int thread);

    const int num_threads_;
    const int spin_microseconds_;
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::vector<std::exception_ptr> failures_;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<uint32_t> running_{0};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace glass
