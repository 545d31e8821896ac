// Scratch memory of the step: grows, never shrinks, so that a running server stops allocating.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace glass {

template <typename T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    // At least `count` elements, aligned to 64 bytes. Contents survive unless the buffer has to grow; then all are 0.
    T* reserve(size_t count) {
        if (count > capacity_) {
            const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
            memory_.reset();
            capacity_ = 0;
            void* memory = std::aligned_alloc(64, bytes);
            if (memory == nullptr) throw std::bad_alloc();
            std::memset(memory, 0, bytes);
            memory_.reset(static_cast<T*>(memory));
            capacity_ = count;
        }
        return memory_.get();
    }

    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }

private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t capacity_ = 0;
};

}  // namespace glass
