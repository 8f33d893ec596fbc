// SPDX-License-Identifier: Apache-2.0
// A convolution as the kernels see it: plain data, no torch.
//
// A map is images of lines of pixels. `line` counts the pixels along a line and `cross` the lines
// of an image; lines are the rows of a map, or its columns (factorized_conv2d/params.h). With zeros
// outside of the map:
//
//   y[cross, line, f] = act(bias[f] + sum over r, s, c of
//       x[cross * step - pad + r, line * step - pad + s, c] * weight[f, r, s, c])
//
// Every tensor has one element type, which the launcher's template names. Channels are contiguous,
// and each pixel and each (filter, tap) of a weight start on a multiple of 16 bytes; biases are
// aligned to their element only.
#pragma once

#include "common/tile.h"

#include <cstdint>

namespace fused_inception {

// Elements between images, between the lines of an image and between the pixels of a line.
struct MapStrides {
  int64_t image;
  int64_t cross;
  int64_t line;
};

// What a filter sees of a map. The launch covers images [first_image, first_image + num_images) of
// every map; the caller keeps their output pixels at 2^30 or below.
struct FilteredMap {
  const void* data;  // image 0, channel 0
  MapStrides stride;
  int64_t first_image;
  int32_t num_images;
  int32_t cross_size;
  int32_t line_size;
  int32_t out_cross_size;
  int32_t out_line_size;
  int32_t cross_step;
  int32_t line_step;
  int32_t cross_pad;
  int32_t line_pad;
  int32_t cross_taps;
  int32_t line_taps;
  int32_t channels;  // a multiple of 8

  FUSED_INCEPTION_HOST_DEVICE constexpr int32_t num_pixels() const {
    return num_images * out_cross_size * out_line_size;
  }
};

// Where some of the filters of a product go.
struct Segment {
  void* destination;  // image 0, the first channel that is written
  MapStrides stride;
  int64_t first_image;
  int32_t begin;   // the first filter ...
  int32_t end;     // ... and the one past the last
  int32_t stored;  // channels that may be written, a multiple of 8; zero past the filters
  bool relu;
};

constexpr int kMaxSegments = 4;

// Tiles of `block_n` filters that the segment is divided into.
FUSED_INCEPTION_HOST_DEVICE constexpr int32_t filter_tiles_of(const Segment& segment, int block_n) {
  return (segment.end - segment.begin + block_n - 1) / block_n;
}

struct ConvolutionParams {
  FilteredMap input;
  const void* weight;  // [filters][cross_taps][line_taps][channels]
  const void* bias;    // [filters], or null
  int32_t num_segments;
  Segment segments[kMaxSegments];
};

}  // namespace fused_inception
