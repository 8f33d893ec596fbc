// SPDX-License-Identifier: Apache-2.0
// The problem of `split_conv2d` as the kernels see it: plain data, no torch. See
// common/convolution.h; lines are rows, and the step is 1.
//
//   y_row[h, w, f] = act(bias_row[f] + sum over t, c of x[h, w + t - n / 2, c] * weight_row[f, t,
//   c]) y_col[h, w, f] = act(bias_col[f] + sum over t, c of x[h + t - m / 2, w, c] * weight_col[f,
//   t, c])
#pragma once

#include "common/convolution.h"

#include <cstdint>

namespace fused_inception {

// One of the two convolutions. Its segment begins at filter 0.
struct SplitHalf {
  const void* weight;  // [filters][taps][channels]
  const void* bias;    // [filters], or null
  int32_t taps;        // odd
  Segment output;      // of both halves with the same strides and first image
};

struct SplitConv2dParams {
  FilteredMap input;  // each pixel by itself: one tap, no padding
  SplitHalf row;
  SplitHalf col;
};

}  // namespace fused_inception
