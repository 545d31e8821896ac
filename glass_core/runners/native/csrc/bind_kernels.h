#pragma once

#include <nanobind/nanobind.h>

namespace glass {

// Adds the submodule `kernels` to the extension module.
void bind_kernels(nanobind::module_& parent);

}  // namespace glass
