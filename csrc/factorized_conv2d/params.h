// SPDX-License-Identifier: Apache-2.0
// The problem of `factorized_conv2d` as the kernels see it: plain data, no torch.
//
// A *line* is the pixels of one image along the axis on which the second factor moves: a column
// where the row filter comes first, else a row. `line` counts pixels along it, `cross` counts lines
// of an image. With zeros outside of the map:
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

#include <cstdint>

namespace fused_inception {

// Elements between images, between the lines of an image and between the pixels of a line.
struct MapStrides {
  int64_t image;
  int64_t cross;
  int64_t line;
};

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

}  // namespace fused_inception
