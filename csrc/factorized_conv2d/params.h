// SPDX-License-Identifier: Apache-2.0
// The problem of `factorized_conv2d` as the kernels see it: plain data, no torch.
//
// A *line* (common/convolution.h) is the pixels of one image along the axis on which the second
// factor moves: a column where the row filter comes first, else a row. With zeros outside of the
// map:
//
//   s = t - taps1 / 2,  u = t - taps2 / 2
//   a[cross, line, k] = sum over t, c of input[cross + s, line, c] * weight1[k, t, c]
//   mid = act_mid(bias1 + a), rounded to the element type
//   b[cross, line, f] = sum over t, k of mid[cross, line + u, k] * weight2[f, t, k]
//   output = act(bias2 + b)
//
// Every tensor has one element type, which the launcher's template names. Channels are contiguous,
// and each pixel, each (filter, tap) of a weight and the mid buffer start on a multiple of 16
// bytes; biases are aligned to their element only.
#pragma once

#include "common/convolution.h"

#include <cstdint>

namespace fused_inception {

struct FactorizedConv2dParams {
  const void* input;    // image 0, channel 0
  const void* weight1;  // [filters1][taps1][c_in]
  const void* bias1;    // [filters1], or null
  const void* weight2;  // [filters2][taps2][c_mid]
  const void* bias2;    // [filters2], or null
  void* output;         // image 0, the first channel that this op writes
  void* mid;  // [image - first_image][cross][line][c_mid]; null where one launch does both

  MapStrides input_stride;
  MapStrides output_stride;

  // This launch covers images [first_image, first_image + num_images). The caller keeps
  // num_images * cross_size * line_size at 2^30 or below, so that a launch's pixels fit 32 bits.
  int64_t first_image;
  int32_t num_images;
  int32_t cross_size;  // lines of an image
  int32_t line_size;   // pixels of a line

  int32_t c_in;      // a multiple of 8
  int32_t filters1;  // filters of the first factor
  int32_t c_mid;     // filters1 rounded up to 8. Mid channels past filters1 must be zero whatever
                     // the input holds: an infinity times a zero weight would be a NaN
  int32_t filters2;  // filters of the second factor
  int32_t c_out;     // filters2 rounded up to 8. These channels may be written, past filters2 with
                     // anything
  int32_t taps1;     // odd
  int32_t taps2;     // odd

  bool mid_relu;
  bool relu;
};

// What the first factor sees of the input: its taps move across lines.
FUSED_INCEPTION_HOST_DEVICE constexpr FilteredMap first_factor_input(
    const FactorizedConv2dParams& params) {
  FilteredMap map = {};
  map.data = params.input;
  map.stride = params.input_stride;
  map.first_image = params.first_image;
  map.num_images = params.num_images;
  map.cross_size = map.out_cross_size = params.cross_size;
  map.line_size = map.out_line_size = params.line_size;
  map.cross_step = map.line_step = map.line_taps = 1;
  map.cross_taps = params.taps1;
  map.cross_pad = params.taps1 / 2;
  map.channels = params.c_in;
  return map;
}

}  // namespace fused_inception
