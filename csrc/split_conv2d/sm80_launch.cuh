// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the split: from a configuration to a grid and its shared memory.
#pragma once

#include "common/convolution_launch.cuh"
#include "split_conv2d/sm80.cuh"
#ifdef __CUDACC__
#include "split_conv2d/launch.h"
#endif

namespace fused_inception {

// Starts a kernel that is `split_tile`.
inline device::Status launch_split(void (*kernel)(SplitConv2dParams),
                                   const SplitConv2dConfiguration& row,
                                   const SplitConv2dParams& params,
                                   device::Stream stream) {
  const FilteredMap& map = params.input;
  const int32_t filter_tiles = filter_tiles_of(params, row.tile.block_n);
  int64_t blocks = product_blocks(row.tile, map, filter_tiles);
  if (row.whole) {
    const int64_t images = whole_images(row.tile, params);
    if (images == 0) return device::kInvalidValue;
    blocks = (map.num_images + images - 1) / images * filter_tiles;
  }
  const int64_t bytes = shared_bytes(row, map.channels, params.row.taps, params.col.taps);
  if (bytes > INT32_MAX) return device::kInvalidValue;
  return device::launch(
      kernel, blocks, row.tile.threads(), static_cast<int>(bytes), stream, params);
}

// Runs `configuration`, a row of kSplitConv2dConfigurations, on `stream`. A problem that it does
// not take is kInvalidValue, and nothing is launched.
template <typename input_t>
device::Status launch_split_conv2d(const SplitConv2dParams& params,
                                   int configuration,
                                   device::Stream stream) {
  return with_configuration<kNumSplitConv2dConfigurations>(configuration, [&](auto number) {
    return launch_split(
        split_conv2d_kernel<number, input_t>, kSplitConv2dConfigurations[number], params, stream);
  });
}

}  // namespace fused_inception
