#include "image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace glass {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 31;
constexpr size_t kReadAtOnceBytes = size_t{512} << 20;

[[noreturn]] void refuse(const std::string& tensor, const std::string& problem) {
    throw std::runtime_error("weight image: tensor '" + tensor + "' " + problem);
}

size_t file_bytes(int file, const std::string& path) {
    struct stat status {};
    if (fstat(file, &status) != 0 || status.st_size <= 0) {
        throw std::runtime_error("weight image: cannot read the size of " + path);
    }
    return static_cast<size_t>(status.st_size);
}

void check_dimensions(const TensorEntry& entry) {
    const std::pair<const char*, int64_t> dimensions[] = {
            {"rows", entry.rows}, {"cols", entry.cols}, {"padded_cols", entry.padded_cols}, {"row_bytes", entry.row_bytes}};
    for (const auto& [name, value] : dimensions) {
        if (value < 1 || value >= kMaxDimension) {
            refuse(entry.name, std::string("has ") + name + " " + std::to_string(value) + ", expected 1 to 2^31 - 1");
        }
    }
    if (entry.padded_cols < entry.cols) refuse(entry.name, "has fewer padded columns than columns");
}

// Asks for 2-MB pages, which the page cache has where the file was not cached before, and reads an image of a small
// model at once. Other images come in as they are used: reading ahead would cache them in small pages.
void read_ahead(uint8_t* base, size_t num_bytes) {
#if defined(MADV_HUGEPAGE)
    madvise(base, num_bytes, MADV_HUGEPAGE);
#endif
#if defined(MADV_POPULATE_READ)
    if (num_bytes <= kReadAtOnceBytes) madvise(base, num_bytes, MADV_POPULATE_READ);
#endif
}

}  // namespace

Image::Image(const std::string& path, uint64_t payload_offset, uint64_t payload_bytes,
             std::vector<TensorEntry> entries) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw std::runtime_error("weight image: cannot open " + path + ": " + std::strerror(errno));
    void* mapping = MAP_FAILED;
    try {
        num_bytes_ = file_bytes(file, path);
        mapping = mmap(nullptr, num_bytes_, PROT_READ, MAP_SHARED, file, 0);
    } catch (...) {
        close(file);
        throw;
    }
    close(file);
    if (mapping == MAP_FAILED) throw std::runtime_error("weight image: cannot map " + path);
    base_ = static_cast<uint8_t*>(mapping);
    try {
        if (payload_offset > num_bytes_ || payload_bytes > num_bytes_ - payload_offset) {
            throw std::runtime_error("weight image: " + path + " is truncated: it has " + std::to_string(num_bytes_) +
                               " bytes, its header asks for " + std::to_string(payload_offset) + " + " +
                               std::to_string(payload_bytes));
        }
        for (TensorEntry& entry : entries) add(std::move(entry), base_ + payload_offset, payload_bytes);
    } catch (...) {
        munmap(base_, num_bytes_);
        throw;
    }
    read_ahead(base_, num_bytes_);
}

Image::~Image() { munmap(base_, num_bytes_); }

void Image::add(TensorEntry entry, const uint8_t* payload, uint64_t payload_bytes) {
    check_dimensions(entry);
    if (entry.offset % 64 != 0) refuse(entry.name, "does not start at a multiple of 64");
    if (entry.offset > payload_bytes || entry.num_bytes > payload_bytes - entry.offset) {
        refuse(entry.name, "lies outside the payload");
    }
    // both factors are below 2^31: the product cannot overflow
    if (static_cast<uint64_t>(entry.rows) * static_cast<uint64_t>(entry.row_bytes) > entry.num_bytes) {
        refuse(entry.name, "has " + std::to_string(entry.num_bytes) + " bytes, too few for its rows");
    }
    const std::string name = entry.name;
    const uint8_t* data = payload + entry.offset;
    if (!tensors_.emplace(name, Tensor{std::move(entry), data}).second) refuse(name, "appears twice");
}

const Tensor* Image::find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
}

const Tensor& Image::get(const std::string& name) const {
    const Tensor* tensor = find(name);
    if (tensor == nullptr) refuse(name, "is missing");
    return *tensor;
}

}  // namespace glass
