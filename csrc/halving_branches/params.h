// SPDX-License-Identifier: Apache-2.0
// The branches of a grid reduction as the kernels see them: plain data, no torch. See
// common/convolution.h; lines are rows, steps are 2, there is no padding, and the output maps of
// all have one size.
#pragma once

#include "common/convolution.h"

#include <cstdint>

namespace fused_inception {

constexpr int kMaxBranches = 3;

struct HalvingBranchesParams {
  int32_t num_branches;
  ConvolutionParams branches[kMaxBranches];  // of one segment each
  // Blocks up to the end of each branch's; those of the pool follow.
  int32_t ends[kMaxBranches];
  FilteredMap pool_input;
  void* pooled;  // image 0, the first channel that the pool writes: as many as its input has
  MapStrides pooled_stride;
};

}  // namespace fused_inception
