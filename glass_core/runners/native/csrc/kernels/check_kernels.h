// A known-answer check of a kernel table, short enough for every start: a wrong kernel is worse than a slow one.
#pragma once

#include "kernels.h"

namespace glass {

// Which function of the table computes something else than the portable one on fixed inputs; nullptr when none does.
// The inputs are whole numbers and powers of two, so that every sum is exact in float32 and the order of additions,
// which differs between instruction sets, changes nothing: results must be equal, not close. Attention is checked twice:
// with scores so far apart that every weight is exactly 0 or 1, and with close ones, whose exponentials are close too.
const char* find_defect(const Kernels& kernels);

}  // namespace glass
