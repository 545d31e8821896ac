#include "pages.h"

#include <sys/mman.h>

#include <stdexcept>
#include <string>

namespace glass {

LazyPages::LazyPages(size_t num_bytes, const char* what) : num_bytes_(num_bytes) {
    void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::runtime_error("cannot reserve " + std::to_string(num_bytes) + " bytes for " + what);
    }
    base_ = static_cast<uint8_t*>(memory);
#ifdef MADV_HUGEPAGE
    madvise(memory, num_bytes, MADV_HUGEPAGE);  // advice only: without it everything works, a little slower
#endif
}

LazyPages::~LazyPages() { munmap(base_, num_bytes_); }

}  // namespace glass
