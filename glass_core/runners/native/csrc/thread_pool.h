// A fixed team of threads for the phases of one step: workers spin briefly for the next phase, then sleep, because
// phases follow each other within microseconds while a step runs and the box is shared when it does not.
//
// A phase has as many slots as the team has threads. Which thread runs a slot does not matter, so a thread that is done
// takes the slot of one that the kernel has not let run yet: on a busy box nobody waits for a sleeper with nothing to do.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace glass {

// What one thread has of something countable: [first, last).
struct Share {
    int32_t first;
    int32_t last;
};

// Thread `thread`'s part of `count`, in whole multiples of `unit`: threads have parts that follow each other, because
// memory is read faster in long pieces.
inline Share share(int32_t count, int32_t unit, int thread, int num_threads) {
    const int64_t units = (count + unit - 1) / unit;
    const auto bound = [&](int64_t i) { return static_cast<int32_t>(std::min<int64_t>(units * i / num_threads * unit, count)); };
    return {bound(thread), bound(thread + 1)};
}

class ThreadPool {
public:
    // num_threads >= 1 counts the calling thread, which is thread 0.
    explicit ThreadPool(int num_threads, int spin_microseconds = 50);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }

    // Runs fn(slot, num_threads) once for every slot in [0, num_threads) and returns when all are done. The first
    // exception, by slot, is thrown again here. Not reentrant: one caller at a time, and not from within fn.
    template <typename Fn>
    void parallel(Fn&& fn) {
        using Plain = std::remove_reference_t<Fn>;
        run([](void* context, int slot, int slots) { (*static_cast<Plain*>(context))(slot, slots); },
            const_cast<void*>(static_cast<const void*>(&fn)));
    }

private:
    using Task = void (*)(void* context, int slot, int slots);

    void run(Task task, void* context);
    void take_slots();
    void execute(int slot);
    void work();

    const int num_threads_;
    const int spin_microseconds_;
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::vector<std::exception_ptr> failures_;
    // Counts phases; workers wait for it to change.
    alignas(64) std::atomic<uint32_t> phase_{0};
    // The next slot nobody has taken; num_threads_ and above: none left. Reset by `run` only after the task is set, and
    // a slot that was taken keeps `run` from returning, so whoever takes one reads the task it belongs to.
    alignas(64) std::atomic<uint32_t> next_slot_;
    alignas(64) std::atomic<uint32_t> unfinished_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace glass
