// SPDX-License-Identifier: Apache-2.0
// The problem of the pools as the kernels see it: plain data, no torch. The taps of the input are
// the window; see common/convolution.h. Elements are of 16 or 32 bits.
#pragma once

#include "common/convolution.h"

#include <cstdint>

namespace fused_inception {

struct Pool2dParams {
  FilteredMap input;
  void* output;  // image 0, the first channel that is written: as many as the input has
  MapStrides output_stride;
  // Of a mean:
  const void* bias;  // [biased], or null
  int32_t biased;
  bool include_pad;  // divides by the whole window at the border of the map too
  bool relu;
};

}  // namespace fused_inception
