// Zeroed memory straight from the kernel: address space is reserved at once, a page is taken when it is first touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glass {

class LazyPages {
public:
    // `what` names the memory in the std::runtime_error thrown when the address space cannot be reserved.
    LazyPages(size_t num_bytes, const char* what);
    ~LazyPages();
    LazyPages(const LazyPages&) = delete;
    LazyPages& operator=(const LazyPages&) = delete;

    uint8_t* data() const { return base_; }

private:
    size_t num_bytes_;
    uint8_t* base_;
};

}  // namespace glass
