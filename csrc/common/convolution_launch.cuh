// SPDX-License-Identifier: Apache-2.0
// From the shape of a tile to the grid of a product.
#pragma once

#include "common/convolution.h"
#include "common/device_launch.cuh"
#include "common/tile.h"

#include <type_traits>

namespace fused_inception {

// `launch(number)` with `number` as a constant, where it is one of kCount configurations; else
// kInvalidValue.
template <int kCount, int kNumber = 0, typename Launch>
device::Status with_configuration(int number, const Launch& launch) {
  if constexpr (kNumber == kCount) {
    return device::kInvalidValue;
  } else {
    if (number == kNumber) return launch(std::integral_constant<int, kNumber>());
    return with_configuration<kCount, kNumber + 1>(number, launch);
  }
}

// Blocks for all tiles of a launch of `map`, where the filters make `filter_tiles` tiles.
inline int64_t product_blocks(const TileShape& shape,
                              const FilteredMap& map,
                              int64_t filter_tiles) {
  const int64_t pixel_tiles = (int64_t{map.num_pixels()} + shape.block_m - 1) / shape.block_m;
  return pixel_tiles * filter_tiles;
}

// Blocks for all tiles of a convolution.
inline int64_t convolution_blocks(const TileShape& shape, const ConvolutionParams& params) {
  int64_t filter_tiles = 0;
  for (int i = 0; i < params.num_segments; ++i) {
    filter_tiles += filter_tiles_of(params.segments[i], shape.block_n);
  }
  return product_blocks(shape, params.input, filter_tiles);
}

// Starts a kernel that is `convolve_tile`.
inline device::Status launch_convolution(void (*kernel)(ConvolutionParams),
                                         const TileShape& shape,
                                         const ConvolutionParams& params,
                                         device::Stream stream) {
  return device::launch(kernel,
                        convolution_blocks(shape, params),
                        shape.threads(),
                        shape.fixed_shared_bytes(),
                        stream,
                        params);
}

}  // namespace fused_inception
