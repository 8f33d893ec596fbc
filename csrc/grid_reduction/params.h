// SPDX-License-Identifier: Apache-2.0
// The problem of `grid_reduction` as the kernels see it: plain data, no torch. See
// common/convolution.h; lines are rows, the step is 2, and there is no padding.
#pragma once

#include "common/convolution.h"

#include <cstdint>

namespace fused_inception {

struct GridReductionParams {
  FilteredMap input;
  const void* weight;  // [filters][kernel][kernel][channels]
  const void* bias;    // [filters], or null
  Segment conv;
  void* pooled;  // image 0, the first channel that the pool writes: as many as the input has
  MapStrides pooled_stride;
  bool max;  // or the mean
};

}  // namespace fused_inception
