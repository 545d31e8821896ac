// The weight image: one read-only memory mapping shared between processes, and a table of the tensors in it.
//
// The header (JSON) is parsed in Python; the table it yields is not trusted: every entry is checked against the mapping
// before anything is read, so that a corrupted file is refused and never walked out of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace glass {

// One tensor as the header describes it. `offset` counts from the start of the payload.
struct TensorEntry {
    std::string name;
    std::string kind;  // f32, rows_q4, rows_q8, rows_bf16, columns, column_scales, coded_scales, scale_units
    uint64_t offset = 0;
    uint64_t num_bytes = 0;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t padded_cols = 0;
    int64_t row_bytes = 0;
};

// A checked tensor: all of [data, data + entry.num_bytes) lies inside the mapping.
struct Tensor {
    TensorEntry entry;
    const uint8_t* data = nullptr;
};

class Image {
public:
    // Maps `path` and checks that [payload_offset, payload_offset + payload_bytes) and every tensor lie inside it.
    // Throws std::runtime_error naming the tensor, what came and what was expected.
    Image(const std::string& path, uint64_t payload_offset, uint64_t payload_bytes, std::vector<TensorEntry> entries);
    ~Image();
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;

    // Throws std::runtime_error when there is no such tensor.
    const Tensor& get(const std::string& name) const;
    const Tensor* find(const std::string& name) const;

private:
    void add(TensorEntry entry, const uint8_t* payload, uint64_t payload_bytes);

    uint8_t* base_ = nullptr;
    size_t num_bytes_ = 0;
    std::map<std::string, Tensor> tensors_;
};

}  // namespace glass
