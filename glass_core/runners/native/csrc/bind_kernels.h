#pragma once

#include <nanobind/nanobind.h>

namespace glass {

// Adds the submodule `kernels` to the extension module.
void bind_kernels(nanobind::module_& parent);
// adds the attention kernel to the submodule that bind_kernels makes
void bind_attention(nanobind::module_& kernels);

}  // namespace glass
